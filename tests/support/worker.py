"""A worker in a process of its own, as operators run it: started, stopped, killed, asked.

worker = WorkerProcess(broker.bootstrap, log=tmp_path / "worker.log")
worker.start()
worker.wait_ready()
worker.get("/jobs")
worker.kill()
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from pipeline.local.process import LOOPBACK, free_port
from tests.support import PATIENCE

ROOT = Path(__file__).resolve().parents[2]


#: Every worker that was started; what a failed test leaves running is killed after it.
_started: list[subprocess.Popen[bytes]] = []


def kill_leftovers() -> None:
    """Kill all workers that still run."""
    for process in _started:
        if process.poll() is None:
            process.kill()
            process.wait()
    _started.clear()


class WorkerFailed(AssertionError):
    """The worker ended, or did not get as far as it should; the message ends with its log."""


class WorkerProcess:
    """``runnerstream worker`` on a broker.

    Args:
        kafka: ``host:port`` of the broker.
        role: what it runs; ``fold`` needs no ClickHouse.
        log: file that collects its output over all starts; a temporary one when None.
        command: instead of ``-m pipeline.cli worker --role ...``, for tests that wrap it.
        directory: its data directory; a temporary one when None. Kept over restarts.
        env: settings by their names in any case, with or without ``RUNNERSTREAM_``
            (``tick_interval="0.5"``), and other variables as they are.

    Times are short unless told otherwise, so that a killed worker's partitions move soon.
    """

    DEFAULTS: ClassVar = {
        "tick_interval": "1",
        "session_timeout": "6",
        "rebalance_timeout": "6",
        "commit_interval": "0.5",
        "clickhouse": "",
        "sink_port": "0",
        "prober_port": "0",
        "executor_port": "0",
        "gateway_port": "0",
        "relay_port": "0",
        "redeliver_port": "0",
    }

    def __init__(
        self,
        kafka: str,
        *,
        role: str = "fold",
        log: Path | None = None,
        command: list[str] | None = None,
        directory: Path | None = None,
        **env: object,
    ) -> None:
        self.port = free_port()
        self.log = log or Path(tempfile.mkstemp(prefix="worker-", suffix=".log")[1])
        self.directory = directory or Path(tempfile.mkdtemp(prefix="worker-"))
        self.role = role
        self._command = command
        self._given = {"kafka": kafka, "data_dir": str(self.directory), **env}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Base of its views."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Its process id; None when it does not run."""
        return self._process.pid if self._process is not None and self.alive() else None

    @property
    def returncode(self) -> int | None:
        """How it ended; None while it runs."""
        return None if self._process is None else self._process.poll()

    def env(self) -> dict[str, str]:
        """The whole environment of the process. Settings of the caller do not leak into it."""
        settings = {**self.DEFAULTS, "web_port": str(self.port), **self._given}
        if self.role in ("redeliver", "scrape"):
            settings[f"{self.role}_port"] = str(self.port)
        env = {k: v for k, v in os.environ.items() if not k.startswith("RUNNERSTREAM_")}
        known = _setting_names()
        for name, value in settings.items():
            bare = name.lower().removeprefix("runnerstream_")
            env[f"RUNNERSTREAM_{bare.upper()}" if bare in known else name] = str(value)
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH", "")]))
        env["PYTHONUNBUFFERED"] = "1"
        return env

    def start(self, *, wait: bool = True, timeout: float = 30.0) -> Self:
        """Start it. ``wait`` returns once /healthz answers, not once it is ready.

        Raises WorkerFailed when it ends first or ``timeout`` seconds pass.
        """
        if self.alive():
            raise WorkerFailed(f"worker {self.pid} already runs")
        command = self._command or ["-m", "pipeline.cli", "worker", "--role", self.role]
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.env(),
                cwd=ROOT,
            )
        _started.append(self._process)
        if wait:
            self.wait(lambda: self.get("/healthz")[0] == 200, timeout, "answer /healthz")
        return self

    def wait_ready(self, timeout: float = 60.0) -> Self:
        """Return once /readyz says ready. Raises WorkerFailed with its reasons otherwise."""
        last: Any = None

        def ready() -> bool:
            nonlocal last
            status, last = self.get("/readyz")
            return status == 200

        try:
            self.wait(ready, timeout, "become ready")
        except WorkerFailed as error:
            raise WorkerFailed(f"{error}\nlast said: {last}") from None
        return self

    def wait(self, done: Any, timeout: float, what: str) -> None:
        """Wait until ``done()`` is true while the worker lives; OSError counts as not yet."""
        deadline = time.monotonic() + PATIENCE * timeout
        while True:
            with contextlib.suppress(OSError):
                if done():
                    return
            if not self.alive():
                raise WorkerFailed(f"the worker ended with {self.returncode}:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise WorkerFailed(f"the worker did not {what} in {timeout:g} s:\n{self.tail()}")
            time.sleep(0.05)

    def get(
        self, path: str, accept: str = "application/json", timeout: float = 15.0
    ) -> tuple[int, Any]:
        """Status and body of a view: parsed when it is JSON, text otherwise. Raises OSError."""
        request = urllib.request.Request(self.url + path, headers={"Accept": accept})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                status, headers, body = response.status, response.headers, response.read()
        except urllib.error.HTTPError as error:
            status, headers, body = error.code, error.headers, error.read()
        if headers.get_content_type() == "application/json":
            return status, json.loads(body)
        return status, body.decode()

    def metric(self, name: str) -> float:
        """Sum over all children of a metric."""
        return sum(
            float(line.rpartition(" ")[2])
            for line in str(self.get("/metrics")[1]).splitlines()
            if line.startswith((name + " ", name + "{"))
        )

    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self, timeout: float = 30.0) -> int | None:
        """SIGTERM and wait; the exit code. Killed when it does not end in time."""
        if self._process is None:
            return None
        if self.alive():
            self._process.terminate()
            try:
                self._process.wait(PATIENCE * timeout)
            except subprocess.TimeoutExpired:
                self.kill()
        return self._process.returncode

    def kill(self) -> None:
        """kill -9 and wait."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def signal(self, number: int) -> None:
        """Send a signal (SIGSTOP makes it hang); nothing when it does not run."""
        if self._process is not None and self.alive():
            self._process.send_signal(number)

    def tail(self, lines: int = 40) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.signal(signal.SIGCONT)
        self.stop()


def _setting_names() -> frozenset[str]:
    from pipeline.settings import Settings

    return frozenset(Settings.model_fields)
