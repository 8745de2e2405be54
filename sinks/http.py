"""Health and metrics of a process over HTTP, alike for every role that has no pages.

``/healthz`` says whether the process should live, ``/readyz`` whether it does its work (503 with
the reasons otherwise), ``/metrics`` is for Prometheus. Of a sink: ClickHouse being away makes it
not ready and leaves it alive: a restart would not help, and would read the same records again.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from sinks.process import tell_process


class Status(Protocol):
    """How a process is doing: a dataclass of what JSON can say, with at least these fields."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def ready(self) -> bool:
        """It does its work."""
        ...

    @property
    def reason(self) -> str:
        """Why it is not ready, as a sentence; empty when it is."""
        ...

    @property
    def alive(self) -> bool:
        """It should go on. When not, restarting the process is right."""
        ...


class Metrics(Protocol):
    """Who counts."""

    @property
    def registry(self) -> CollectorRegistry:
        """What ``/metrics`` shows."""
        ...


class Probed(Protocol):
    """Whatever can be asked how it is. Both are asked from threads of the server."""

    @property
    def metrics(self) -> Metrics:
        """What it counts."""
        ...

    def status(self) -> Status:
        """How it is now. Quick, whatever hangs."""
        ...


class HealthServer:
    """Serves health and metrics of one process until closed."""

    def __init__(
        self,
        probed: Probed,
        host: str = "127.0.0.1",
        port: int = 0,
        about: Mapping[str, str] | None = None,
        version: str = "unknown",
    ) -> None:
        """Listen at once; port 0 takes a free one. ``about`` tells whose it is, so that who
        finds it knows it from another deployment's. Raises OSError when the port is taken."""
        self._probed = probed
        self._process = CollectorRegistry()
        tell_process(self._process, version)
        self._about = dict(about or {})
        server = self

        class Handler(BaseHTTPRequestHandler):
            #: A client that says nothing does not hold a thread for ever. Seconds.
            timeout = 10

            def do_GET(self) -> None:
                code, kind, body = server.answer(self.path)
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Probes come every few seconds; their log lines help nobody."""

        self._http = ThreadingHTTPServer((host, port), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(
            target=self._http.serve_forever, name="health-http", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._http.server_address[1])

    def close(self) -> None:
        """Stop serving."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(5)

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Status code, content type and body for a GET."""
        path = path.partition("?")[0]
        if path == "/metrics":
            told = map(generate_latest, (self._probed.metrics.registry, self._process))
            return 200, CONTENT_TYPE_LATEST, b"".join(told)
        status = self._probed.status()
        answer = {**dataclasses.asdict(status), "deployment": self._about}
        body = json.dumps(answer, indent=2).encode() + b"\n"
        if path == "/healthz":
            return (200 if status.alive else 503), "application/json", body
        if path == "/readyz":
            return (200 if status.ready else 503), "application/json", body
        return 404, "text/plain", b"try /healthz, /readyz or /metrics\n"
