"""Images in, classes out, over HTTP and in a browser: what is refused, what is answered together, and none lost."""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench.errors import UsageError
from bench.runs.serving import Batcher, Limits, RefusedError, form_file, open_network, read_image, refuse_used_port
from models import zoo
from models.training.checkpoint import LAST, Card, save_weights, weights_of

CLASSES = tuple("abcdefgh")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def jpeg(side: int = 40) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG")
    return data.getvalue()


def bomb(side: int) -> bytes:
    data = io.BytesIO()
    Image.new("1", (side, side)).save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run") / LAST
    save_weights(path, weights_of(zoo.build("lenet", len(CLASSES))), Card("lenet", CLASSES, 32))
    return path


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"", 400, "empty"),
        (b"hello", 415, "no image"),
        (jpeg()[:-200], 422, "damaged"),
        (b"x" * 5000, 413, "MiB"),
        (bomb(300), 413, "300 x 300 pixels"),
    ],
)
def test_what_is_no_image_or_too_much_is_refused(data: bytes, status: int, words: str) -> None:
    with pytest.raises(RefusedError, match=words) as found:
        read_image(data, Limits(bytes=4096, pixels=50_000))
    assert found.value.status == status


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_images_of_every_mode_are_read(mode: str) -> None:
    data = io.BytesIO()
    Image.new(mode, (5, 4)).save(data, "TIFF")
    assert read_image(data.getvalue(), Limits()).mode == "RGB"


def test_the_file_of_a_form() -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\n\x00\xff\r\n\x01\r\n--x--\r\n'
    assert form_file(body, "multipart/form-data; boundary=x") == b"\x00\xff\r\n\x01"
    with pytest.raises(RefusedError, match="no file"):
        form_file(
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--\r\n', "multipart/form-data; boundary=x"
        )


def test_requests_that_wait_are_answered_together_and_each_gets_its_own(checkpoint: Path) -> None:
    network = open_network(str(checkpoint), "cpu", "naive", 1)
    network.batcher.close()
    gate = threading.Event()
    sizes: list[int] = []

    class Slow:
        def top(self, images: torch.Tensor, k: int) -> Any:
            gate.wait(10)
            sizes.append(len(images))
            return [[("class", float(image.mean()))] for image in images]

    class Opened:
        classifier, options, device = Slow(), network.opened.options, torch.device("cpu")

    batcher = Batcher(Opened(), most=4)  # type: ignore[arg-type]
    first = batcher.submit(torch.full((3, 2, 2), 100.0))
    while batcher._waiting.qsize():
        time.sleep(0.001)
    rest = [batcher.submit(torch.full((3, 2, 2), float(n))) for n in range(10)]
    gone = batcher.submit(torch.zeros(3, 2, 2))
    assert gone.cancel(), "who has gone away is not worked for"
    gate.set()
    assert first.result(10)[0] == (("class", 100.0),)
    assert [answer.result(10)[0][0][1] for answer in rest] == [float(n) for n in range(10)]
    batcher.close()
    assert sizes[0] == 1
    assert max(sizes) == 4
    assert sum(sizes) == 11


def test_an_error_of_the_network_reaches_who_asked_and_the_next_is_answered(checkpoint: Path) -> None:
    network = open_network(str(checkpoint), "cpu", "naive", 1)
    with pytest.raises(RuntimeError):
        network.batcher.submit(torch.zeros(1)).result(10)
    assert len(network.say(Image.new("RGB", (50, 40))).top) == 5
    network.batcher.close()


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("none/of/these", "does not exist"),
        ("resnet1", "did you mean"),
        ("cifar_resnet18", "has no weights"),
    ],
)
def test_what_is_no_network_is_said(word: str, words: str) -> None:
    with pytest.raises(Exception, match=words):
        open_network(word, "cpu", "fast", 1)


def test_published_weights_are_taken_from_torch_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import AlexNet_Weights

    weights = AlexNet_Weights.IMAGENET1K_V1
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(zoo.build("alexnet").state_dict(), folder / weights.url.rsplit("/", 1)[1])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network = open_network("alexnet", "cpu", "naive", 1)
    said = network.say(Image.new("RGB", (300, 200)))
    assert {name for name, _ in said.top} <= set(weights.meta["categories"])
    network.batcher.close()


def test_a_used_port_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="--port"):
            refuse_used_port("127.0.0.1", taken.getsockname()[1])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def served(checkpoint: Path) -> Iterator[str]:
    """The command as a user runs it, with two networks; its address."""
    pytest.importorskip("gradio", reason="needs gradio")
    port = free_port()
    command = [sys.executable, "-m", "bench", "serve", str(checkpoint), str(checkpoint.parent), "--port", str(port)]
    log = checkpoint.parent / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--max-mib", "1", "--max-pixels", "1000000", "--threads", "1"],
            stderr=file, env={**os.environ, "PYTHONPATH": os.getcwd(), "GRADIO_TEMP_DIR": str(checkpoint.parent)},
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5)
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        assert process.wait(30) in (0, 130, -15), log.read_text()
    said = log.read_text()
    assert "Traceback" not in said, said


def ask(address: str, data: bytes, kind: str = "image/jpeg") -> tuple[int, Any]:
    request = urllib.request.Request(f"{address}/predict", data=data, headers={"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_an_answer_over_http(served: str) -> None:
    status, said = ask(served, jpeg())
    assert status == 200
    assert len(said["networks"]) == 2
    for network in said["networks"]:
        chances = [one["probability"] for one in network["top"]]
        assert len(chances) == 5
        assert chances == sorted(chances, reverse=True)
        assert network["network_ms"] > 0


@pytest.mark.parametrize(
    ("data", "status"), [(b"", 400), (b"text", 415), (jpeg()[:-200], 422), (b"\0" * 2_000_000, 413), (bomb(3000), 413)]
)
def test_what_is_refused_over_http_says_why(data: bytes, status: int, served: str) -> None:
    code, said = ask(served, data)
    assert code == status
    assert said["error"]


def test_two_hundred_at_once_lose_none(served: str) -> None:
    image = jpeg()
    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(lambda _: ask(served, image), range(200)))
    assert [status for status, _ in answers] == [200] * 200
    assert max(said["networks"][0]["together"] for _, said in answers) > 1
    with urllib.request.urlopen(f"{served}/health") as health:
        told = json.load(health)
    assert told["networks"][0]["served"] >= 200
    assert told["networks"][0]["batches"] < told["networks"][0]["served"]


def test_who_hangs_up_harms_nobody(served: str) -> None:
    host, port = served.removeprefix("http://").split(":")
    for _ in range(5):
        with socket.create_connection((host, int(port))) as line:
            line.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nabc")
    assert ask(served, jpeg())[0] == 200


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_browser_uploads_and_sees_five_falling_bars(served: str, tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    sync = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    image, large = tmp_path / "x.jpg", tmp_path / "bomb.png"
    image.write_bytes(jpeg())
    large.write_bytes(bomb(3000))
    with sync.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page()
        asked: list[str] = []
        wrong: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.goto(served)
        tab.set_input_files("input[type=file]", str(image))
        tab.wait_for_selector("img[src*='x.jpg']")
        tab.click("button:has-text('Classify')")
        tab.wait_for_selector("meter >> nth=9")
        bars = tab.evaluate("[...document.querySelectorAll('meter')].map(m => Number(m.getAttribute('aria-valuenow')))")
        tab.wait_for_function("[...document.querySelectorAll('textarea')].every(t => t.value.includes('ms'))")
        assert len(bars) == 10, "five for each of two networks"
        assert bars[:5] == sorted(bars[:5], reverse=True)
        assert bars[5:] == sorted(bars[5:], reverse=True)
        tab.reload()
        tab.set_input_files("input[type=file]", str(large))
        tab.wait_for_selector("img[src*='bomb.png']")
        tab.click("button:has-text('Classify')")
        tab.wait_for_selector("text=/that are allowed/")
        browser.close()
    assert wrong == []
    foreign = [url for url in asked if not re.match(rf"{re.escape(served)}|data:|blob:", url)]
    assert foreign == [], "nothing is fetched from elsewhere"
