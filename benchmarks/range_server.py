"""A local HTTP server of byte ranges with the faults of a real one: latency, connections that drop, some that stall."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Faults:
    """What goes wrong, drawn for each request. drop_share: of the requests whose connection closes before or within
    the body; delay_share of them wait delay_s longer than latency_s."""

    def __init__(
        self,
        latency_s: float = 0.0,
        drop_share: float = 0.0,
        delay_share: float = 0.0,
        delay_s: float = 0.0,
        seed: int = 0,
    ):
        self.latency_s, self.drop_share, self.delay_share, self.delay_s = latency_s, drop_share, delay_share, delay_s
        self._draws = random.Random(seed)
        self._lock = threading.Lock()
        self.num_requests = self.num_dropped = self.num_bytes = 0

    def of_request(self) -> tuple[str, float]:
        """Where the connection drops ("": nowhere, "before" the answer, "within" it), and how long the answer waits."""
        with self._lock:
            self.num_requests += 1
            drops = self._draws.random() < self.drop_share
            self.num_dropped += drops
            where = self._draws.choice(["before", "within"]) if drops else ""
            delayed = self._draws.random() < self.delay_share
        return where, self.latency_s + (self.delay_s if delayed else 0.0)

    def count(self, num_bytes: int) -> None:
        with self._lock:
            self.num_bytes += num_bytes


@contextmanager
def serving(folder: Path, faults: Faults | None = None) -> Iterator[str]:
    """Serves the files of a folder; gives the URL that stands for it."""
    server = _Server(("127.0.0.1", 0), partial(_Handler, folder, faults or Faults()))
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.05), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request, client_address) -> None:
        """A client that goes away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, folder: Path, faults: Faults, *arguments):
        self._folder, self._faults = folder, faults
        super().__init__(*arguments)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *arguments) -> None:
        pass

    def _answer(self, with_body: bool) -> None:
        drops_where, wait_s = self._faults.of_request()
        time.sleep(wait_s)
        path = self._folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        size = path.stat().st_size
        wanted = re.fullmatch(r"bytes=([0-9]+)-([0-9]*)", self.headers.get("Range", ""))
        begin, end = (int(wanted[1]), min(int(wanted[2] or size) + 1, size)) if wanted else (0, size)
        if drops_where == "before":
            self.close_connection = True
            return
        if begin >= max(end, 1):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(end - begin))
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
        self.end_headers()
        if not with_body:
            return
        with open(path, "rb") as file:
            file.seek(begin)
            body = file.read((end - begin) // 2 if drops_where else end - begin)
        self._faults.count(len(body))
        self.wfile.write(body)
        self.wfile.flush()
        if drops_where:
            self.close_connection = True
