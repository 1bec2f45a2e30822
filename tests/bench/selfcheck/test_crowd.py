"""Many clients at once: every answer is counted, also those that are none."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any

import pytest

from bench.errors import UsageError
from bench.selfcheck.crowd import Crowd, ask, report

ANSWER = {"networks": [{"name": "a", "top": [{"class": "cat", "probability": 1.0}]}]}


@contextmanager
def server(status: Any) -> Iterator[str]:
    """Answers the n-th upload with status(n), 0 for a connection that is closed; yields its address."""
    numbers = count()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            assert self.rfile.read(int(self.headers["Content-Length"])) == b"image"
            code = status(next(numbers))
            if not code:
                self.close_connection = True
                return
            body = json.dumps(ANSWER if code == 200 else {"error": "no"}).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *words: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_address[1]}"
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


def test_every_client_gets_its_answers() -> None:
    with server(lambda number: 200) as url:
        crowd = ask(url, b"image", clients=8, seconds=0.3)
    assert set(crowd.statuses) == {"200"}
    assert crowd.statuses["200"] >= 8
    assert crowd.median is not None
    assert crowd.longest is not None
    assert crowd.median <= crowd.longest <= crowd.seconds


def test_refused_and_lost_questions_are_counted() -> None:
    # The first is the question whether anything answers at all.
    with server(lambda number: 200 if number % 3 == 0 else 503 if number % 3 == 1 else 0) as url:
        crowd = ask(url, b"image", clients=1, seconds=0.3)
    assert set(crowd.statuses) == {"200", "503", "lost"}
    assert max(crowd.statuses.values()) - min(crowd.statuses.values()) <= 1


def test_the_99th_percentile_needs_enough_answers() -> None:
    few = Crowd(2, 10.0, {"200": 10, "503": 2}, 0.5, None, 1.0)
    assert report(few, "busy", "csv").splitlines()[1] == "2,busy,10,2 503,1.0,500.0,,1000.0"
    assert json.loads(report(few, "none", "json"))["rate"] == 1.0


def test_an_address_where_nothing_answers_is_an_error() -> None:
    with server(lambda number: 200) as url:
        pass
    with pytest.raises(UsageError, match="start bench serve first"):
        ask(url, b"image", 1, 0.1)
    for nonsense in ("nonsense", "ftp://127.0.0.1:7860", "http://127.0.0.1:port", "http://[::1"):
        with pytest.raises(UsageError, match="is no address"):
            ask(nonsense, b"image", 1, 0.1)
    with server(lambda number: 415) as url, pytest.raises(UsageError, match="does not classify this image"):
        ask(url, b"image", 1, 0.1)
