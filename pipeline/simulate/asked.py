"""A simulation that can be asked and commanded while it runs: GitHub's API and a dispatcher.

    simulation = Simulation(..., stalls=Stalls())
    with FakeGitHub(simulation.asked.job, simulation.asked.run), Dispatcher(...):

What is said and done by request is part of the truth, like what the records tell: see
:meth:`pipeline.simulate.Simulation.truth`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, NamedTuple

from pipeline.simulate.api import ApiJob, ApiRun
from pipeline.simulate.origins import ORGANISATION
from pipeline.simulate.stuck import StuckWorld
from pipeline.simulate.wire import HOST, Said, Wire
from topics.keys import job_key
from topics.recovery import CommandKind, Result

#: Commands are small; what is larger is none.
_MOST_BYTES: Final = 1 << 20
#: What a result is as an HTTP status.
_STATUS: Final = {Result.DONE: 200, Result.REFUSED: 409, Result.CANNOT: 422}


class Closing(NamedTuple):
    """A job that is over because GitHub told that its run is: since when that was told (ms)."""

    key: str
    told_at: int


class Asked:
    """Answers about a world that goes on, and what they told. Safe from several threads."""

    def __init__(self, world: StuckWorld) -> None:
        self.world = world
        #: The time, in ms.
        self.clock: Callable[[], int] = _now
        self._wire = Wire(world.seed)
        self._said: list[Said] = []
        self._closed: dict[str, int] = {}

    def job(self, job_id: int) -> ApiJob | None:
        """A job, for :class:`pipeline.simulate.api.FakeGitHub`."""
        with self.world.lock:
            job = self.world.jobs.get(job_id)
            if job is None:
                return None
            body, said = self._wire.job_now(job)
            self._said.append(said._replace(event_at=self.clock(), received_at=self.clock()))
            self.world.told(job_id)
            return ApiJob(body["status"], job.run.id, more=body)

    def run(self, run_id: int, attempt: int) -> ApiRun | None:
        """A run in an attempt, 0: the latest."""
        with self.world.lock:
            run = self.world.runs.get(run_id)
            found = None if run is None else self._wire.run_now(run, attempt)
            if run is None or found is None:
                return None
            body, said = found
            self._said.append(said._replace(event_at=self.clock(), received_at=self.clock()))
            if body["status"] == "completed" and attempt in (0, run.attempt):
                for job in run.jobs:
                    if job.completed is None:
                        self._closed.setdefault(job_key("github", HOST, job.id), self.clock())
                        self.world.told(job.id)
            return ApiRun(body["status"], more=body)

    def sees(self, repo: str) -> bool:
        """Whether it is a repository of this world."""
        return repo.startswith(f"{ORGANISATION}/")

    def execute(self, command_id: str, command: dict[str, Any]) -> tuple[Result, str]:
        """A command, as its dispatcher does it; see :meth:`StuckWorld.execute`."""
        with self.world.lock:
            answer = self.world.execute(command_id, command, self.clock())
            kind, claim = command["command"], command["fence"]["claim"]
            now = self.clock()
            frees = kind in (CommandKind.REQUEUE, CommandKind.RELEASE_CLAIM)
            if answer[0] is Result.DONE and frees and claim:
                # That it was done says so, whether its dispatcher is heard or not.
                said = Said("", "claim.released", command["job_key"], now, now, claim=claim)
                self._said.append(said)
            return answer

    def said(self) -> list[Said]:
        """What was told by request so far."""
        with self.world.lock:
            return list(self._said)

    def closings(self) -> list[Closing]:
        """Jobs that are over by what was told of their runs."""
        with self.world.lock:
            return [Closing(*each) for each in self._closed.items()]


class Dispatcher:
    """The hook of a simulated dispatcher: ``POST`` a command to ``url``. It checks the signature,
    then does what it is told, once, or says why not. Serves until closed.

    ``asked``: what it acts on; while that is None, nobody is there (503).
    """

    def __init__(self, secret: bytes) -> None:
        self.asked: Asked | None = None
        self._secret = secret
        outer = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_POST(self) -> None:
                size = self.headers.get("Content-Length", "")
                if not size.isdecimal() or int(size) > _MOST_BYTES:
                    return self.answer(413, {"error": "no Content-Length, or too large"})
                body = self.rfile.read(int(size))
                signature = self.headers.get("X-Runnerstream-Signature-256", "")
                return self.answer(
                    *outer.answer(body, signature, self.headers.get("Idempotency-Key", ""))
                )

            def answer(self, status: int, said: dict[str, str]) -> None:
                body = json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """What was done is in the world's books."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="dispatcher", daemon=True
        ).start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/commands"

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()

    def answer(self, body: bytes, signature: str, command_id: str) -> tuple[int, dict[str, str]]:
        """HTTP status and body for a request."""
        made = "sha256=" + hmac.new(self._secret, body, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(made.encode(), signature.encode("utf-8", "replace")):
            return 401, {"error": "the signature is not of this body"}
        if self.asked is None:
            return 503, {"error": "nobody is there yet"}
        try:
            if not command_id:
                raise ValueError("no Idempotency-Key")
            result, reason = self.asked.execute(command_id, json.loads(body))
        except (ValueError, KeyError, TypeError) as error:
            return 422, {"result": "cannot", "reason": f"malformed: {error}"[:200]}
        return _STATUS[result], {"result": result.value, "reason": reason}


def _now() -> int:
    return int(time.time() * 1000)
