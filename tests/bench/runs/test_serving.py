"""Images in, classes out, over HTTP and in a browser: what is refused, what is answered together, and none lost."""

import gc
import io
import json
import re
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from bench.cli import app
from bench.errors import UsageError
from bench.runs import serving
from bench.runs.predicting import Predictor
from bench.runs.serving import MIB, Limits, Network, RefusedError, listen, read_image
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


def test_too_many_pixels_are_refused_whatever_pillow_allows() -> None:
    with pytest.raises(RefusedError, match="300 x 300 pixels") as refused:
        read_image(bomb(300), Limits(pixels=50_000))
    assert refused.value.status == 413


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_images_of_every_mode_are_read(mode: str) -> None:
    data = io.BytesIO()
    Image.new(mode, (5, 4)).save(data, "TIFF")
    assert read_image(data.getvalue(), Limits()).mode == "RGB"


def test_requests_that_wait_are_answered_together_and_each_gets_its_own() -> None:
    gate = threading.Event()
    sizes: list[int] = []

    class Slow:
        def top(self, images: torch.Tensor, k: int) -> Any:
            gate.wait(10)
            sizes.append(len(images))
            return [[("class", float(image.mean()))] for image in images]

    class Fake:
        classifier, batch = Slow(), staticmethod(torch.stack)

    network = Network("fake", Fake(), most=4)  # type: ignore[arg-type]
    first = network.submit(torch.full((3, 2, 2), 100.0))
    while network._waiting.qsize():
        time.sleep(0.001)
    rest = [network.submit(torch.full((3, 2, 2), float(n))) for n in range(10)]
    gone = network.submit(torch.zeros(3, 2, 2))
    assert gone.cancel(), "the request of a client that has gone"
    gate.set()
    assert first.result(10)[0] == (("class", 100.0),)
    assert [answer.result(10)[0][0][1] for answer in rest] == [float(n) for n in range(10)]
    network.close()
    assert sizes[0] == 1
    assert max(sizes) == 4
    assert sum(sizes) == 11


def open_network(word: str, device: str, configuration: str, threads: int) -> Network:
    return Network(word, Predictor.open(word, device, configuration, threads=threads))


def test_an_error_of_the_network_reaches_its_own_request_and_the_next_is_answered(checkpoint: Path) -> None:
    with closing(open_network(str(checkpoint), "cpu", "naive", 1)) as network:
        with pytest.raises(RuntimeError):
            network.submit(torch.zeros(1)).result(10)
        assert len(network.answer(Image.new("RGB", (50, 40))).top) == 5


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("none/of/these", "does not exist"),
        ("mynet.py:Net", "mynet.py does not exist"),
        ("net.onnx", "is an exported file, which bench compare takes"),
        ("resnet1", "did you mean"),
        ("cifar_resnet18", "has no weights"),
    ],
)
def test_what_is_no_network_is_said(word: str, words: str) -> None:
    with pytest.raises(Exception, match=words):
        open_network(word, "cpu", "fast", 1)


def test_published_weights_are_taken_from_torch_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import SqueezeNet1_1_Weights

    weights = SqueezeNet1_1_Weights.IMAGENET1K_V1
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(zoo.build("squeezenet1_1").state_dict(), folder / weights.url.rsplit("/", 1)[1])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with closing(open_network("squeezenet1_1", "cpu", "naive", 1)) as network:
        answer = network.answer(Image.new("RGB", (300, 200)))
    assert {name for name, _ in answer.top} <= set(weights.meta["categories"])


def test_a_used_port_is_refused() -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(UsageError, match="--port"):
        listen("127.0.0.1", taken.getsockname()[1])


def test_the_command_serves_what_it_was_asked_for(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uvicorn = pytest.importorskip("uvicorn", reason="needs gradio")
    ran: list[Any] = []

    def interrupted(server: Any, sockets: list[socket.socket]) -> None:
        ran.append((server.config.app, sockets[0].getsockname()))
        raise KeyboardInterrupt

    monkeypatch.setattr(uvicorn.Server, "run", interrupted)
    monkeypatch.setattr(serving, "application", lambda networks, limits: (networks, limits))
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    words = ["serve", str(checkpoint), str(checkpoint.parent), "--port", str(port), "--threads", "1"]
    done = CliRunner().invoke(app, [*words, "--max-mib", "1", "--max-pixels", "1000000"], standalone_mode=False)
    assert isinstance(done.exception, click.Abort), "bench.cli ends with 130 then"
    [((networks, limits), (host, served_port))] = ran
    assert (host, served_port) == ("127.0.0.1", port)
    assert limits == Limits(MIB, 1_000_000)
    assert [network.name for network in networks] == [str(checkpoint), str(checkpoint.parent)]
    assert all(network.served == 1 for network in networks), "the first call is not the first user's"
    assert not any(network._thread.is_alive() for network in networks)
    assert f"http://127.0.0.1:{port} (Ctrl-C ends it)" in done.stderr


@contextmanager
def unclosed_things_of_gradio() -> Iterator[None]:
    """Gradio leaves event loops and sockets to the garbage collector, which must not meet them in another test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
        gc.collect()


@pytest.fixture(scope="module")
def served(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server in this process, with two networks."""
    uvicorn = pytest.importorskip("uvicorn", reason="needs gradio")
    networks = [open_network(str(path), "cpu", "fast", 1) for path in (checkpoint, checkpoint.parent)]
    with pytest.MonkeyPatch.context() as patch, listen("127.0.0.1", 0) as door:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        patch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
        with unclosed_things_of_gradio():
            application = serving.application(networks, Limits(MIB, 1_000_000))
        server = uvicorn.Server(uvicorn.Config(application, log_level="warning", timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run, args=([door],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{door.getsockname()[1]}"
        finally:
            with unclosed_things_of_gradio():
                server.should_exit = True
                thread.join(30)
                del application, server
    for network in networks:
        network.close()


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


def form(name: str) -> bytes:
    head = f'--x\r\nContent-Disposition: form-data; name="a"{name}\r\n\r\n'.encode()
    return head + jpeg() + b"\r\n--x--\r\n"


def test_the_file_of_a_form_is_classified(served: str) -> None:
    status, said = ask(served, form('; filename="b"'), FORM)
    assert status == 200
    assert said["networks"][0]["top"] == ask(served, jpeg())[1]["networks"][0]["top"]


FORM = "multipart/form-data; boundary=x"


@pytest.mark.parametrize(
    ("data", "kind", "status", "words"),
    [
        (b"", "image/jpeg", 400, "empty"),
        (b"text", "image/jpeg", 415, "not an image"),
        (jpeg()[:-200], "image/jpeg", 422, "damaged"),
        (b"x" * (MIB + 9), "image/jpeg", 413, "the file has 1.0 MiB"),
        (b"x" * 2_000_000, "image/jpeg", 413, "the upload is larger than the 1 MiB"),
        (b"x" * 5_000_000, "image/jpeg", 413, "the upload is larger than the 1 MiB"),
        (bomb(3000), "image/png", 413, "more pixels than the 1,000,000"),
        (form(""), FORM, 400, "no file"),
        (form('; filename="b"'), "multipart/form-data", 400, "damaged"),
    ],
)
def test_what_is_refused_says_why(data: bytes, kind: str, status: int, words: str, served: str) -> None:
    code, said = ask(served, data, kind)
    assert code == status
    assert words in said["error"]


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
