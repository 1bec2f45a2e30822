"""Clients that keep a running `bench serve` busy, and how long each of them waits for its answers."""

import http.client
import json
import statistics
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from bench.errors import UsageError
from results.errors import RecordError
from results.stats import percentile
from results.tables import render, to_json

PATIENCE = 120.0  # seconds that a client waits for one answer: longer than the server lets it wait


@dataclass(frozen=True)
class Crowd:
    """How a server answered.

    Attributes:
        clients: that asked at the same time, each anew as soon as it had its answer.
        seconds: from the first question to the last answer.
        statuses: status of HTTP -> answers; what had no answer counts as "lost".
        median, p99, longest: seconds from a question to its answer, over those with status 200; None from too few.
    """

    clients: int
    seconds: float
    statuses: dict[str, int]
    median: float | None
    p99: float | None
    longest: float | None

    @property
    def rate(self) -> float:
        """Images answered a second."""
        return self.statuses.get("200", 0) / self.seconds


def ask(url: str, image: bytes, clients: int, seconds: float) -> Crowd:
    """Have so many clients post an image for so long, each over a connection of its own.

    Args:
        url: of the server, as `bench serve` prints it.

    Raises:
        UsageError: nothing answers there.
    """
    try:
        place = urlsplit(url)
        host, port = place.hostname, place.port or 80
    except ValueError:
        host = None
    if host is None or place.scheme != "http":
        raise UsageError(f"{url!r} is no address of a server; bench serve prints one, such as http://127.0.0.1:7860")
    try:
        with closing(http.client.HTTPConnection(host, port, timeout=PATIENCE)) as first:
            status = _post(first, image)
    except OSError as error:
        raise UsageError(f"nothing answers at {url}: {error.strerror or error}; start bench serve first") from None
    if status != "200":
        raise UsageError(f"{url} does not classify this image: status {status}")
    statuses: Counter[str] = Counter()
    times: list[float] = []
    lock = threading.Lock()
    begin = time.monotonic()

    def client() -> None:
        connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
        while time.monotonic() < begin + seconds:
            asked = time.perf_counter()
            try:
                status = _post(connection, image)
            except (OSError, http.client.HTTPException):
                status = "lost"
                connection.close()
            took = time.perf_counter() - asked
            with lock:
                statuses[status] += 1
                if status == "200":
                    times.append(took)
        connection.close()

    threads = [threading.Thread(target=client, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = time.monotonic() - begin
    median = statistics.median(times) if times else None
    return Crowd(clients, spent, dict(sorted(statuses.items())), median, _p99(times), max(times, default=None))


def _p99(times: list[float]) -> float | None:
    try:
        return percentile(times, 0.99)
    except RecordError:
        return None  # too few answers for a figure so far out


def _post(connection: http.client.HTTPConnection, image: bytes) -> str:
    connection.request("POST", "/predict", image, {"Content-Type": "application/octet-stream"})
    response = connection.getresponse()
    body = response.read()
    # An answer that names no class is none.
    if response.status == 200 and not json.loads(body)["networks"][0]["top"]:
        return "lost"
    return str(response.status)


def report(crowd: Crowd, load: str, format: str) -> str:
    """One line of figures."""
    if format == "json":
        return to_json({**asdict(crowd), "rate": crowd.rate, "load": load})
    others = ", ".join(f"{count} {status}" for status, count in crowd.statuses.items() if status != "200")
    row: list[Any] = [
        crowd.clients,
        load,
        crowd.statuses.get("200", 0),
        others or "none",
        round(crowd.rate, 1),
        *(None if value is None else round(1e3 * value, 1) for value in (crowd.median, crowd.p99, crowd.longest)),
    ]
    headers = ["clients", "beside", "answered", "other answers", "images/s", "median, ms", "p99, ms", "longest, ms"]
    return render(headers, [row], format)
