"""`bench serve`: a page and an API that classify images with one or two networks.

Requests that arrive while the network works wait together and are answered as one batch: nobody waits for a batch to
fill, and a network that falls behind catches up by larger batches. An image is looked at before it is decoded: its
bytes and the pixels its header promises are limited, because a file of a few kilobytes can ask for gigabytes.
"""

from __future__ import annotations

import io
import queue
import socket
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from bench.defaults import UPLOAD_MIB, UPLOAD_PIXELS
from bench.errors import BenchError, UsageError
from bench.runs.predicting import Predictor, Top, top_to_json
from loaders.errors import DataError, LargeError
from loaders.file_formats import FORMATS
from loaders.images import MOST_PIXELS, opened, rgb
from models.errors import install

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import JSONResponse

TOP = 5  # classes an image
MOST_TOGETHER = 64  # images a batch
READ_ON = 8  # times the limit: so much of a larger upload is read before the connection is closed
PATIENCE = 60.0  # seconds that a request waits for its answer
MIB = 1 << 20


class RefusedError(BenchError):
    """An upload that is not classified.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """The largest image that is accepted.

    Attributes:
        bytes: of the file.
        pixels: width times height, as its header says.
    """

    bytes: int = int(UPLOAD_MIB * MIB)
    pixels: int = UPLOAD_PIXELS


@dataclass(frozen=True)
class Answer:
    """What a network says about one image.

    Attributes:
        decode_ms: milliseconds for decoding and scaling the image.
        network_ms: milliseconds for the network and for waiting until it was free.
        together: images it was answered together with, itself included.
    """

    top: Top
    decode_ms: float
    network_ms: float
    together: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "top": top_to_json(self.top)}


def read_image(data: bytes, limits: Limits, exif: str = "ignore") -> Image.Image:
    """The image in RGB, its EXIF orientation ignored or applied.

    Raises RefusedError: nothing, too much, not an image, or a damaged one; each with its status.
    """
    if not data:
        raise RefusedError("the upload is empty; send an image file", 400)
    if len(data) > limits.bytes:
        raise RefusedError(f"the file has {len(data) / MIB:.1f} MiB; {limits.bytes / MIB:.0f} MiB are allowed", 413)
    try:
        image = opened(io.BytesIO(data), min(limits.pixels, MOST_PIXELS))
    except LargeError as error:
        raise RefusedError(f"the image has {error}", 413) from None
    except (DataError, OSError, ValueError, SyntaxError):
        known = ", ".join(kind.name for kind in FORMATS)
        raise RefusedError(f"this is not an image that can be read; these are: {known}", 415) from None
    try:
        return rgb(image, exif)
    except DataError as error:
        raise RefusedError(f"the image cannot be read: {error}", 415) from None
    except Exception as error:
        # Decoders fail in as many ways as files are damaged.
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise RefusedError(f"the image is damaged: {first}", 422) from None


class Network:
    """A classifier with a queue: images that wait at the same time are answered together.

    Args:
        name: as it was asked for.
        most: images a batch.
    """

    def __init__(self, name: str, predictor: Predictor, most: int = MOST_TOGETHER) -> None:
        self.name, self.predictor, self._most = name, predictor, most
        self.served = self.batches = 0
        self._waiting: queue.Queue[tuple[Tensor, Future[tuple[Top, int]]] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="answers", daemon=True)
        self._thread.start()

    @property
    def exif(self) -> str:
        """Whether EXIF orientation is ignored or applied, as when the network was trained."""
        return self.predictor.options.exif

    def answer(self, image: Image.Image, decode_ms: float = 0.0) -> Answer:
        """Classify an image that took `decode_ms` to decode. Raises RefusedError: no answer came in time."""
        begin = time.perf_counter()
        prepared = self.predictor.prepare(image)
        queued = time.perf_counter()
        try:
            top, together = self.submit(prepared).result(timeout=PATIENCE)
        except TimeoutError:
            raise RefusedError(f"no answer within {PATIENCE:.0f} s; too many requests", 503) from None
        return Answer(top, decode_ms + 1e3 * (queued - begin), 1e3 * (time.perf_counter() - queued), together)

    def submit(self, prepared: Tensor) -> Future[tuple[Top, int]]:
        """Queue a prepared image [3, size, size]; the future holds its classes, and how many were answered together."""
        future: Future[tuple[Top, int]] = Future()
        self._waiting.put((prepared, future))
        return future

    def close(self) -> None:
        """Answer what waits, then end."""
        self._waiting.put(None)
        self._thread.join(timeout=10)

    def describe(self) -> dict[str, Any]:
        """What /health says of it."""
        card = self.predictor.classifier.card
        return {
            "name": self.name,
            "model": card.model,
            "classes": len(card.classes),
            "size": card.size,
            "configuration": self.predictor.configuration.text,
            "device": self.predictor.device.type,
            "served": self.served,
            "batches": self.batches,
        }

    def _work(self) -> None:
        closed = False
        while not closed:
            taken = [self._waiting.get()]
            with suppress(queue.Empty):
                while len(taken) < self._most:
                    taken.append(self._waiting.get_nowait())
            closed = None in taken
            # Requests whose clients have gone are dropped.
            jobs = [job for job in taken if job is not None and job[1].set_running_or_notify_cancel()]
            if jobs:
                self._classify([image for image, _ in jobs], [future for _, future in jobs])

    def _classify(self, images: list[Tensor], futures: list[Future[tuple[Top, int]]]) -> None:
        try:
            tops = self.predictor.classifier.top(self.predictor.batch(images), TOP)
        except Exception as error:
            for future in futures:
                future.set_exception(error)
            return
        self.served += len(images)
        self.batches += 1
        for future, top in zip(futures, tops, strict=True):
            future.set_result((tuple(top), len(images)))


def classify(networks: Sequence[Network], data: bytes, limits: Limits) -> list[Answer]:
    """What each network says about one upload. Raises RefusedError: the upload is not classified."""
    begin = time.perf_counter()
    # Networks differ in whether they were trained on images as they are stored or as they are meant to be seen.
    images = {exif: read_image(data, limits, exif) for exif in {network.exif for network in networks}}
    decode_ms = 1e3 * (time.perf_counter() - begin)
    return [network.answer(images[network.exif], decode_ms) for network in networks]


def listen(host: str, port: int) -> socket.socket:
    """A socket on which clients may already wait. Raises UsageError if nothing can listen there."""
    try:
        door = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        # An answer is written in two parts, head and body. Without this, which connections inherit, the second part
        # waits until a client that keeps its connection has confirmed the first: 40 ms, by Linux's delayed
        # acknowledgement. asyncio sets it only on sockets that name their protocol, which those made here do not.
        door.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return door
    except OSError as error:
        raise UsageError(f"cannot listen on {host} port {port}: {error.strerror}; choose another with --port") from None


def application(networks: Sequence[Network], limits: Limits) -> Any:
    """The ASGI application: the page at /, POST /predict, GET /health. Raises UsageError: gradio is not installed."""
    try:
        import gradio
        from fastapi import FastAPI
        from starlette.concurrency import run_in_threadpool
        from starlette.requests import ClientDisconnect
        from starlette.responses import JSONResponse
    except ImportError as error:
        raise UsageError(f"bench serve needs gradio, which is not installed; {install('demo')}") from error
    begin = time.monotonic()

    async def health(request: Request) -> JSONResponse:
        return JSONResponse(
            {
                "status": "ok",
                "seconds": time.monotonic() - begin,
                "limits": asdict(limits),
                "networks": [network.describe() for network in networks],
            }
        )

    async def predict(request: Request) -> JSONResponse:
        try:
            data = await _upload(request, limits)
            answers = await run_in_threadpool(classify, networks, data, limits)
        except RefusedError as error:
            return JSONResponse({"error": str(error)}, status_code=error.status)
        except ClientDisconnect:
            # There is no client left to read this.
            return JSONResponse({"error": "the upload broke off"}, status_code=400)
        named = zip(networks, answers, strict=True)
        return JSONResponse({"networks": [{"name": network.name, **answer.to_json()} for network, answer in named]})

    app = FastAPI(title="pixbench", docs_url=None, redoc_url=None)
    app.add_route("/health", health, methods=["GET"])
    app.add_route("/predict", predict, methods=["POST"])
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


async def _upload(request: Request, limits: Limits) -> bytes:
    """The whole body, or the first file of a form. Raises RefusedError: too large, or a form without a file."""
    from starlette.datastructures import UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

    body = _limited(request, limits)
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return b"".join([part async for part in body])
    try:
        form = await MultiPartParser(request.headers, body).parse()
    except MultiPartException as error:
        raise RefusedError(f"the form is damaged: {error.message}", 400) from None
    try:
        for _, field in form.multi_items():
            if isinstance(field, UploadFile):
                return await field.read()
    finally:
        await form.close()
    raise RefusedError("the form holds no file; send one as a field of multipart/form-data, or as the body", 400)


async def _limited(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    """The parts of a body, up to the limit.

    What comes after it is not kept, but a larger body is read on for a while: a client that is still sending would
    meet a closed connection and never read the answer.

    Raises RefusedError: the body is larger than the limit.
    """
    too_much = RefusedError(f"the upload is larger than the {limits.bytes / MIB:.0f} MiB that are allowed", 413)
    # A form has some hundred bytes around its file.
    room = limits.bytes + 64 * 1024
    seen = 0
    async for part in request.stream():
        seen += len(part)
        if seen > READ_ON * room:
            raise too_much
        if seen <= room:
            yield part
    if seen > room:
        raise too_much


def interface(networks: Sequence[Network], limits: Limits) -> Any:
    """The page: an image in, for each network five classes with bars, and milliseconds."""
    import gradio

    def show(path: str | None) -> list[Any]:
        if path is None:
            raise gradio.Error("choose an image first", print_exception=False)
        try:
            answers = classify(networks, Path(path).read_bytes(), limits)
        except (RefusedError, OSError) as error:
            raise gradio.Error(str(error), print_exception=False) from None
        shown: list[Any] = []
        for answer in answers:
            times = f"{answer.decode_ms:.1f} ms to decode, {answer.network_ms:.1f} ms for the network"
            shown += [dict(answer.top), times]
        return shown

    with gradio.Blocks(title="pixbench", analytics_enabled=False) as page:
        gradio.Markdown(f"## What is in the picture?\n{' and '.join(network.name for network in networks)}")
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
            show, image, outputs, api_visibility="private", concurrency_limit=8
        )
    return page


def serve(networks: Sequence[Network], door: socket.socket, limits: Limits) -> None:
    """Serve on a listening socket until interrupted."""
    import uvicorn

    app = application(networks, limits)
    for network in networks:
        # The first call of every operator is slow; it is not the first user's.
        size = network.predictor.classifier.card.size
        network.answer(Image.new("RGB", (size, size)))
    try:
        uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)).run([door])
    finally:
        for network in networks:
            network.close()
