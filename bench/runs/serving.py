"""`bench serve`: a page and an API that say what is on an image, with one or two networks.

Requests that arrive while the network works wait together and are answered as one batch: nobody waits for a batch to
fill, and a network that falls behind catches up by larger batches. An image is looked at before it is decoded: its
bytes and the pixels its header promises are limited, because a file of a few kilobytes can ask for gigabytes.
"""

import io
import queue
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from bench.errors import BenchError, UsageError
from bench.machine.cpu import usable_cores
from bench.runs.predicting import Opened, open_checkpoint
from bench.runs.sources import evaluation_options
from bench.runs.training import choose_device
from loaders.pil import transform_one
from models import zoo
from models.configuration import parse
from models.predict import Classifier
from models.prepare import device_facts

TOP = 5
MOST_TOGETHER = 64  # images a batch
PATIENT = 8  # times as much as is allowed is read before the line is closed on who sends it
PATIENCE = 60.0  # seconds that a request waits for its answer
MIB = 1 << 20


class RefusedError(BenchError):
    """An image that is not classified.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """What an image may be.

    Attributes:
        bytes: of the file.
        pixels: width times height, as its header says.
    """

    bytes: int = 20 * MIB
    pixels: int = 50_000_000


@dataclass(frozen=True)
class Said:
    """One answer: (class, probability) pairs, likeliest first, and milliseconds of decoding, of the network with the
    wait for it, and the images it was answered together with."""

    top: tuple[tuple[str, float], ...]
    decode_ms: float
    network_ms: float
    together: int

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return {
            "top": [{"class": name, "probability": p} for name, p in self.top],
            "decode_ms": self.decode_ms,
            "network_ms": self.network_ms,
            "together": self.together,
        }


def read_image(data: bytes, limits: Limits) -> Image.Image:
    """The image in RGB.

    Raises:
        RefusedError: nothing, too much, no image, or a damaged one; each with its status.
    """
    if not data:
        raise RefusedError("the upload is empty; send an image file", 400)
    if len(data) > limits.bytes:
        raise RefusedError(f"the file has {len(data) / MIB:.1f} MiB; {limits.bytes / MIB:.0f} MiB are allowed", 413)
    try:
        image = Image.open(io.BytesIO(data))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        if isinstance(error, Image.DecompressionBombError):
            raise RefusedError(f"the image has more pixels than the {limits.pixels:,} that are allowed", 413) from None
        raise RefusedError("this is no image that can be read; send JPEG, PNG, WebP, BMP, GIF or TIFF", 415) from None
    if image.width * image.height > limits.pixels:
        size = f"{image.width} x {image.height} pixels"
        raise RefusedError(f"the image has {size}, more than the {limits.pixels:,} that are allowed", 413)
    try:
        return image.convert("RGB")
    except Exception as error:
        # Decoders fail in as many ways as files are damaged.
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise RefusedError(f"the image is damaged: {first}", 422) from None


class Batcher:
    """Answers images with a network, those that wait at the same time together."""

    def __init__(self, opened: Opened, most: int = MOST_TOGETHER) -> None:
        self.opened = opened
        self.most = most
        self._waiting: queue.Queue[tuple[Tensor, Future[Any]] | None] = queue.Queue()
        self.served = 0
        self.batches = 0
        self._thread = threading.Thread(target=self._work, name="answers", daemon=True)
        self._thread.start()

    def submit(self, image: Tensor) -> "Future[Any]":
        """An image [3, size, size] as the network takes it; the future holds (top, images answered together)."""
        answer: Future[Any] = Future()
        self._waiting.put((image, answer))
        return answer

    def close(self) -> None:
        """Answer what waits, then end."""
        self._waiting.put(None)
        self._thread.join(timeout=10)

    def _work(self) -> None:
        while True:
            taken = [self._waiting.get()]
            while len(taken) < self.most:
                try:
                    taken.append(self._waiting.get_nowait())
                except queue.Empty:
                    break
            asked = [one for one in taken if one is not None]
            # Whoever has gone away is not worked for.
            asked = [(image, answer) for image, answer in asked if answer.set_running_or_notify_cancel()]
            if asked:
                self._answer(asked)
            if len([one for one in taken if one is None]):
                return

    def _answer(self, asked: Sequence[tuple[Tensor, "Future[Any]"]]) -> None:
        try:
            options = self.opened.options
            images = torch.stack([image for image, _ in asked])
            images = images.to(self.opened.device, getattr(torch, options.dtype))
            if options.layout == "nhwc":
                images = images.contiguous(memory_format=torch.channels_last)
            found = self.opened.classifier.top(images, TOP)
        except Exception as error:
            for _, answer in asked:
                answer.set_exception(error)
            return
        self.served += len(asked)
        self.batches += 1
        for (_, answer), top in zip(asked, found, strict=True):
            answer.set_result((tuple(top), len(asked)))


@dataclass
class Network:
    """A classifier that answers.

    Attributes:
        name: as it was asked for.
        opened: with what is needed to feed it.
        batcher: its queue.
    """

    name: str
    opened: Opened
    batcher: Batcher = field(init=False)

    def __post_init__(self) -> None:
        self.batcher = Batcher(self.opened)
        options = replace(self.opened.options, batch=1, threads=0, random_eval=False)
        self._prepare = transform_one(options)

    def say(self, image: Image.Image, decode_ms: float = 0.0) -> Said:
        """What is on an image.

        Raises:
            RefusedError: no answer came in time.
        """
        begin = time.perf_counter()
        tensor = self._prepare(image)
        prepared = 1e3 * (time.perf_counter() - begin)
        begin = time.perf_counter()
        try:
            top, together = self.batcher.submit(tensor).result(timeout=PATIENCE)
        except TimeoutError:
            raise RefusedError(f"no answer within {PATIENCE:.0f} s; too many requests", 503) from None
        return Said(top, decode_ms + prepared, 1e3 * (time.perf_counter() - begin), together)

    def describe(self) -> dict[str, Any]:
        """What /health says of it."""
        card = self.opened.classifier.card
        return {
            "name": self.name,
            "model": card.model,
            "classes": len(card.classes),
            "size": card.size,
            "configuration": self.opened.configuration.text,
            "device": self.opened.device.type,
            "served": self.batcher.served,
            "batches": self.batcher.batches,
        }


def open_network(word: str, device: str, configuration: str, threads: int) -> Network:
    """A checkpoint, a run's folder, or a network of torchvision with its published weights.

    Raises:
        UsageError, ModelError: it cannot be had.
    """
    path = Path(word)
    if path.exists() and word not in zoo.names():
        return Network(word, open_checkpoint(path, device, configuration, threads=threads))
    if "/" in word or path.suffix:
        raise UsageError(f"{word} does not exist; name a checkpoint, a run's folder or a model")
    from models.training.distributed import World

    zoo.check(word)
    place = World().device(choose_device(device))
    if threads:
        torch.set_num_threads(threads)
    chosen = parse(configuration, device_facts(place), True)
    classifier = Classifier.from_pretrained(word, chosen, place)
    options = evaluation_options(classifier.card, chosen, place.type, 1, threads or usable_cores())
    return Network(word, Opened(classifier, chosen, place, options))


def answer(networks: Sequence[Network], data: bytes, limits: Limits) -> list[Said]:
    """What each network says of one upload.

    Raises:
        RefusedError: the upload is not classified.
    """
    begin = time.perf_counter()
    image = read_image(data, limits)
    decode_ms = 1e3 * (time.perf_counter() - begin)
    return [network.say(image, decode_ms) for network in networks]


def refuse_used_port(host: str, port: int) -> None:
    """Raise UsageError if nothing can listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"cannot listen on {host} port {port}: {error.strerror}; choose another with --port"
            ) from None


def application(networks: Sequence[Network], limits: Limits) -> Any:
    """The ASGI application: the page at /, POST /predict, GET /health.

    Raises:
        UsageError: gradio is not installed.
    """
    try:
        import gradio
        from fastapi import FastAPI, Request
        from fastapi.concurrency import run_in_threadpool
        from fastapi.responses import JSONResponse
        from starlette.requests import ClientDisconnect
    except ImportError as error:
        raise UsageError("bench serve needs gradio, which is not installed; pip install 'pixbench[demo]'") from error
    app = FastAPI(title="pixbench", docs_url=None, redoc_url=None)
    begin = time.monotonic()

    async def health() -> Any:
        return JSONResponse(
            {
                "status": "ok",
                "seconds": time.monotonic() - begin,
                "limits": {"bytes": limits.bytes, "pixels": limits.pixels},
                "networks": [network.describe() for network in networks],
            }
        )

    async def predict(request: Any) -> Any:
        try:
            data = await _body(request, limits)
            said = await run_in_threadpool(answer, networks, data, limits)
        except RefusedError as error:
            return JSONResponse({"error": str(error)}, status_code=error.status)
        except ClientDisconnect:
            # Nobody is there to read it.
            return JSONResponse({"error": "the upload broke off"}, status_code=400)
        return JSONResponse(
            {"networks": [{"name": n.name, **one.to_json()} for n, one in zip(networks, said, strict=True)]}
        )

    predict.__annotations__["request"] = Request
    app.add_api_route("/health", health, methods=["GET"])
    app.add_api_route("/predict", predict, methods=["POST"])
    # Pillow's own guard, for what opens an image before our code does: it raises beyond twice this.
    Image.MAX_IMAGE_PIXELS = max(1, limits.pixels // 2)
    # The usual theme's typefaces would be fetched from elsewhere.
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return gradio.mount_gradio_app(
        app,
        interface(networks, limits),
        path="/",
        max_file_size=limits.bytes,
        show_error=True,
        theme=theme,
        footer_links=[],
        ssr_mode=False,
    )


async def _body(request: Any, limits: Limits) -> bytes:
    """The upload: the whole body, or the first file of a form. What grows beyond the limit is not kept.

    It is read on for a while, though: who is still sending would meet a closed line and never read the answer.
    """
    too_much = RefusedError(f"the upload is larger than the {limits.bytes / MIB:.0f} MiB that are allowed", 413)
    # A form has some hundred bytes around its file.
    room = limits.bytes + 64 * 1024
    with suppress(ValueError):
        if int(request.headers.get("content-length", "0")) > PATIENT * room:
            raise too_much
    parts: list[bytes] = []
    seen = 0
    async for part in request.stream():
        seen += len(part)
        if seen > PATIENT * room:
            raise too_much
        if seen <= room:
            parts.append(part)
    if seen > room:
        raise too_much
    data = b"".join(parts)
    kind = request.headers.get("content-type", "")
    return form_file(data, kind) if kind.startswith("multipart/form-data") else data


def form_file(data: bytes, kind: str) -> bytes:
    """The first file of a form.

    Raises:
        RefusedError: the form is damaged or holds no file.
    """
    from email.parser import BytesParser
    from email.policy import HTTP

    form = BytesParser(policy=HTTP).parsebytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + data)
    for part in form.walk():
        if part.get_filename() is not None:
            content = part.get_payload(decode=True)
            return content if isinstance(content, bytes) else b""
    raise RefusedError("the form holds no file; send one as a field of multipart/form-data, or as the body", 400)


def interface(networks: Sequence[Network], limits: Limits) -> Any:
    """The page: an image in, for each network five classes with bars, and milliseconds."""
    import gradio

    def classify(path: str | None) -> list[Any]:
        if path is None:
            raise gradio.Error("choose an image first", print_exception=False)
        try:
            said = answer(networks, Path(path).read_bytes(), limits)
        except (RefusedError, OSError) as error:
            raise gradio.Error(str(error), print_exception=False) from None
        shown: list[Any] = []
        for one in said:
            shown += [dict(one.top), f"{one.decode_ms:.1f} ms to decode, {one.network_ms:.1f} ms for the network"]
        return shown

    with gradio.Blocks(title="pixbench", analytics_enabled=False) as page:
        gradio.Markdown(f"## What is on it?\n{' and '.join(network.name for network in networks)}")
        with gradio.Row():
            image: Any = gradio.Image(type="filepath", sources=["upload", "clipboard"], label="image")
            # The component would open the file itself, before its size is known, and word an error of its own.
            image.preprocess = lambda payload: None if payload is None else payload.path
            outputs: list[Any] = []
            for network in networks:
                with gradio.Column():
                    outputs.append(gradio.Label(num_top_classes=TOP, label=network.name))
                    outputs.append(gradio.Textbox(label="time", interactive=False))
        gradio.Button("Classify", variant="primary").click(
            classify, image, outputs, api_visibility="private", concurrency_limit=8
        )
    return page


def serve(networks: Sequence[Network], host: str, port: int, limits: Limits) -> None:
    """Serve until interrupted."""
    import uvicorn

    app = application(networks, limits)
    for network in networks:
        # The first call of every operator is slow; it is not the first user's.
        card = network.opened.classifier.card
        network.say(Image.new("RGB", (card.size, card.size)))
    server = uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=5))
    server.run()
    for network in networks:
        network.batcher.close()
