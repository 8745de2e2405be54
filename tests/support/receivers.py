"""HTTP servers that executors call in tests: a receiver that keeps what it got, a worker's jobs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote


@dataclass(frozen=True)
class Got:
    """A request. Names of headers are lower-case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


#: Status, body, headers. None closes the connection without an answer.
Answer = tuple[int, bytes, Mapping[str, str]] | None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    #: Connections that wait to be taken: those beyond it wait for a second, and longer.
    request_queue_size = 128


@dataclass
class Receiver:
    """Answers every request as ``answers`` says, in a thread each; ``got`` keeps them in order."""

    answers: Callable[[Got], Answer]
    got: list[Got] = field(default_factory=list)
    #: Where it listens; 0 picks one.
    port: int = 0

    def at(self, port: int) -> Self:
        """The same, at this port."""
        self.port = port
        return self

    def __enter__(self) -> Self:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def _any(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                headers = {name.lower(): value for name, value in self.headers.items()}
                got = Got(self.command, self.path, headers, self.rfile.read(size))
                receiver.got.append(got)
                answer = receiver.answers(got)
                if answer is None:
                    self.close_connection = True
                    return
                status, body, more = answer
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **more}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                self._any()

            def do_POST(self) -> None:
                self._any()

            def do_DELETE(self) -> None:
                self._any()

            def log_message(self, format: str, *args: Any) -> None:
                """Silent."""

        self._http = _Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def url(self) -> str:
        """Its base."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"


def answer(status: int = 200, said: Any = None, **headers: str) -> Answer:
    """An answer with a JSON body."""
    body = b"" if said is None else json.dumps(said).encode()
    return status, body, {name.replace("_", "-"): value for name, value in headers.items()}


class FakeWorker(Receiver):
    """``/jobs/{key}`` of a worker: what ``jobs`` says, else 404."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        super().__init__(self._answer)

    def know(self, key: str, facts: int = 3, status: str = "claimed", claim: str = "c1") -> None:
        """A job in a state, with one live claim unless ``claim`` is empty."""
        claims = [{"handle": "c0", "released_at": 1}]
        if claim:
            claims.append({"handle": claim, "released_at": None})
        self.jobs[key] = {
            "key": key, "status": status, "facts": facts, "claims": claims, "runner": "vm-1",
        }  # fmt: skip

    def _answer(self, got: Got) -> Answer:
        found = self.jobs.get(unquote(got.path.removeprefix("/jobs/")))
        return answer(404, {"error": "not known"}) if found is None else answer(200, found)
