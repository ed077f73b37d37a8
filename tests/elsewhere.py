"""A web server on this machine that answers as a test says: it plays S3 or the hub where those would not err."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Answer:
    """What to send; with `cut`, only so many bytes of the body come before the connection ends."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    # Nothing more comes until this is set.
    stall: threading.Event | None = None


@dataclass
class Asked:
    """A request, its headers in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Script = Callable[[Asked], Answer]


@contextmanager
def playing(script: Script) -> Iterator[str]:
    """The address of a server that answers by `script`, for this block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length", "0")))
            answer = script(Asked(self.command, self.path, headers, body))
            self.send_response(answer.status)
            for name, value in {"content-length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(answer.body if answer.cut is None else answer.body[: answer.cut])
            if answer.stall is not None:
                self.wfile.flush()
                answer.stall.wait(30)
            self.close_connection = answer.cut is not None

        do_HEAD = do_POST = do_DELETE = do_GET

        def log_message(self, *_: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
