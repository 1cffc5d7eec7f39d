"""A hub on loopback that serves ranges of one repository's files, and may lie."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REVISION = "c0ffee" * 6 + "abcd"


class Hub(ThreadingHTTPServer):
    """Files of one repository; `twist(path, content, range)` may change what is answered."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.root = root
        self.sent = 0
        self.asked: list[str] = []
        self.revisions: set[str] = set()
        self.twist: Callable[[Answer, bytes], bool] = lambda answer, content: False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        name, revision, file = re.fullmatch(r"/(\w+/\w+)/resolve/(\w+)/(.+)", self.path).groups()  # type: ignore[union-attr]
        assert name == "some/model"
        self.server.asked.append(file)
        self.server.revisions.add(revision)
        path = self.server.root / file
        if not path.is_file():
            self.answer(404, b"")
            return
        content = path.read_bytes()
        if not self.server.twist(self, content):
            begin, end = self.range()
            self.part(content, begin, end)

    def range(self) -> tuple[int, int]:
        first, last = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["range"]).groups()  # type: ignore[union-attr]
        return int(first), int(last) + 1

    def part(self, content: bytes, begin: int, end: int) -> None:
        self.answer(206, content[begin:end], f"bytes {begin}-{end - 1}/{len(content)}")

    def answer(self, status: int, body: bytes, told: str = "", claimed: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if claimed is None else claimed))
        self.send_header("X-Repo-Commit", REVISION)
        if told:
            self.send_header("Content-Range", told)
        self.end_headers()
        self.server.sent += len(body)  # before its last byte: who has read it all may look at once
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Nobody reads it."""


@contextmanager
def hub_of(root: Path) -> Iterator[Hub]:
    with Hub(root) as server:
        running = threading.Thread(target=server.serve_forever)
        running.start()
        try:
            yield server
        finally:
            server.shutdown()
            running.join()
