"""Health and metrics of the sink process over HTTP.

``/healthz`` says whether the process should live, ``/readyz`` whether it does its work (503 with
the reasons otherwise), ``/metrics`` is for Prometheus. ClickHouse being away makes the sink not
ready and leaves it alive: a restart would not help, and would read the same records again.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from sinks.sink import Sink


class HealthServer:
    """Serves a sink's health and metrics until closed."""

    def __init__(
        self,
        sink: Sink,
        host: str = "127.0.0.1",
        port: int = 0,
        about: Mapping[str, str] | None = None,
    ) -> None:
        """Listen at once; port 0 takes a free one. ``about`` tells whose sink it is, so that who
        finds it knows it from another deployment's. Raises OSError when the port is taken."""
        self._sink = sink
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
            target=self._http.serve_forever, name="sink-http", daemon=True
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
            return 200, CONTENT_TYPE_LATEST, generate_latest(self._sink.metrics.registry)
        status = self._sink.status()
        told = {**dataclasses.asdict(status), "deployment": self._about}
        body = json.dumps(told, indent=2).encode() + b"\n"
        if path == "/healthz":
            return (200 if status.alive else 503), "application/json", body
        if path == "/readyz":
            return (200 if status.ready else 503), "application/json", body
        return 404, "text/plain", b"try /healthz, /readyz or /metrics\n"
