"""One server as a child process: started, waited for, stopped, killed, and never left behind."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

LOOPBACK = "127.0.0.1"

_GUARD = Path(__file__).with_name("guard.py")
_POLL_SECONDS = 0.01
_LOG_TAIL_BYTES = 2000
_ATTEMPTS = 3
#: From where to where a port is picked, and how often it is tried before the system is asked.
_FIRST_PORT, _LAST_PORT, _PICKS = 20_000, 32_000, 50


class LocalError(RuntimeError):
    """A local server cannot be had; the message says why and what to do."""


class MissingServer(LocalError):
    """The package that carries the server is absent, or has nothing for this platform."""


class PortTaken(LocalError):
    """Another program listens on a port that was asked for."""


class ServerFailed(LocalError):
    """A server ended, or did not answer in time; the message ends with the tail of its log."""


def free_port() -> int:
    """A loopback TCP port that nothing listens on now; it may be taken before it is used.

    Below those that systems give to outgoing connections (Linux: 32768 and up, others: 49152), so
    that whoever starts again on it later does not find somebody's connection there.
    """
    for _ in range(_PICKS):
        port = _FIRST_PORT + secrets.randbelow(_LAST_PORT - _FIRST_PORT + 1)
        with (
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe,
            contextlib.suppress(OSError),
        ):
            probe.bind((LOOPBACK, port))
            return port
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        found: int = probe.getsockname()[1]
        return found


def resident_mib(pid: int | None) -> int:
    """How much memory a process holds, in MiB; 0 when that cannot be told."""
    if pid is None:
        return 0
    try:
        told = subprocess.run(
            ["ps", "-o", "rss=", "-p", str(pid)],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
        return int(told.stdout) // 1024
    except (OSError, ValueError, subprocess.SubprocessError):
        pass
    try:  # a container without ps
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") >> 20
    except (OSError, ValueError, IndexError):
        return 0


def require_free_port(port: int, server: str, remedy: str, patience: float = 0.0) -> None:
    """Raise `PortTaken` when `port` is still in use after `patience` seconds.

    Args:
        port: a loopback TCP port.
        server: who wants it, for the message.
        remedy: how to choose another, for the message.
        patience: seconds to wait for a server of ours that is still on its way out.
    """
    deadline = time.monotonic() + patience
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # Connections of an earlier server may linger in TIME_WAIT: they are not in the way.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
                return
            except PermissionError as error:
                raise PortTaken(
                    f"{server} may not listen on {LOOPBACK}:{port} (no permission); {remedy}"
                ) from error
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
        if time.monotonic() >= deadline:
            raise PortTaken(
                f"{server} cannot listen on {LOOPBACK}:{port}: another program does; {remedy}"
            )
        time.sleep(0.05)


def accepts_connections(port: int) -> bool:
    """Whether something on loopback accepts a TCP connection on `port` now."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1.0):
            return True
    except OSError:
        return False


class ServerProcess:
    """A server in a process of its own, which dies with this one.

    `guard.py` says how. The server gets its own session, so that Ctrl-C in a terminal reaches the
    program only, which can then finish its work against a living server.

    Args:
        name: what to call it in messages.
        command: program and arguments.
        directory: its working directory; must exist.
        log: the file that collects its output; truncated by `start`.
        env: its whole environment; that of this process when None.
        grace: seconds between SIGTERM and SIGKILL in `stop`.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        directory: Path,
        log: Path,
        env: Mapping[str, str] | None = None,
        grace: float = 5.0,
    ) -> None:
        self.name = name
        self.log = log
        self._command = list(command)
        self._directory = directory
        self._env = dict(env) if env is not None else None
        self._grace = grace
        self._guard: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None

    @property
    def pid(self) -> int | None:
        """The server's own process id; None before the first `start`."""
        return self._pid

    def start(self) -> None:
        """Start the server; returns once it has a pid, not once it is ready.

        Raises:
            ServerFailed: when it cannot be executed.
        """
        if self.alive():
            raise LocalError(f"{self.name} already runs as process {self._pid}")
        with self.log.open("wb") as output:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_GUARD), str(self._grace), *self._command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                cwd=self._directory,
                env=self._env,
                start_new_session=True,
            )
        assert self._guard.stdout is not None
        word, _, value = self._guard.stdout.readline().decode().partition(" ")
        if word != "pid":
            self._reap()
            raise ServerFailed(f"{self.name} cannot be started: {self.log_tail()}")
        self._pid = int(value)

    def alive(self) -> bool:
        """Whether the server runs."""
        return self._guard is not None and self._guard.poll() is None

    def wait_ready(self, ready: Callable[[], bool], timeout: float) -> None:
        """Wait until `ready()` is true.

        Raises:
            ServerFailed: when the server ends first, or `timeout` seconds pass; it is killed then.
        """
        deadline = time.monotonic() + timeout
        while not ready():
            if not self.alive():
                self._reap()
                raise ServerFailed(f"{self.name} ended while starting: {self.log_tail()}")
            if time.monotonic() > deadline:
                self.kill()
                raise ServerFailed(
                    f"{self.name} did not answer within {timeout:g} s: {self.log_tail()}"
                )
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL after the grace; returns when the server is gone."""
        if self._guard is None:
            return
        if self.alive():
            self._guard.terminate()
            try:
                self._guard.wait(self._grace + 5.0)
            except subprocess.TimeoutExpired:
                self.kill()
        self._reap()

    def kill(self) -> None:
        """SIGKILL to the server itself, as a crash would have it; returns when it is gone."""
        if self._guard is None:
            return
        if self.alive() and self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        try:
            self._guard.wait(5.0)
        except subprocess.TimeoutExpired:
            self._guard.kill()
        self._reap()

    def log_tail(self) -> str:
        """The last lines of the server's log, and where all of it is."""
        try:
            data = self.log.read_bytes()
        except OSError:
            data = b""
        text = data[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
        return f"{text or '(it said nothing)'} [{self.log}]"

    def _reap(self) -> None:
        if self._guard is None:
            return
        # Closing the lifeline ends a guard that still lives, so this cannot wait for ever.
        for stream in (self._guard.stdin, self._guard.stdout):
            if stream is not None:
                stream.close()
        self._guard.wait()
        self._guard = None


class LocalServer:
    """A server on loopback that keeps its ports over stops, kills and starts.

    A subclass names it, and launches it on the ports it is given.

    Args:
        directory: configuration, logs and data; created when absent.
        ports: by what they are for, the ports to listen on; 0 picks a free one at the first start
            and keeps it.
    """

    #: What to call it in messages.
    NAME: ClassVar[str]
    #: By what a port is for, how to choose another.
    REMEDIES: ClassVar[Mapping[str, str]] = {}
    #: Mode of the directory when it is made.
    MODE: ClassVar[int] = 0o777

    def __init__(self, directory: Path, ports: Mapping[str, int]) -> None:
        self.directory = directory
        self._ports = dict(ports)
        self._process: ServerProcess | None = None

    @property
    def pid(self) -> int | None:
        """The process id of the server itself; None when it does not run."""
        return self._process.pid if self._process is not None and self.alive() else None

    def alive(self) -> bool:
        """Whether the server's process runs."""
        return self._process is not None and self._process.alive()

    def start(self, patience: float = 2.0) -> None:
        """Start the server on what its directory holds, and wait until it can be used.

        Args:
            patience: seconds to wait for an earlier server to leave the ports.

        Raises:
            LocalError: when it cannot be had here; MissingServer says which package is absent.
            PortTaken: when another program listens on one of the ports.
            ServerFailed: when the server ends or does not answer.
        """
        self._require()
        self.directory.mkdir(parents=True, exist_ok=True, mode=self.MODE)
        given = self._ports
        for use, port in given.items():
            if port:
                remedy = self.REMEDIES.get(use, "give it another port")
                require_free_port(port, self.NAME, remedy, patience)
        for attempt in range(1, _ATTEMPTS + 1):
            self._ports = {use: port or free_port() for use, port in given.items()}
            try:
                self._launch()
                return
            except ServerFailed:
                # A picked port can be taken by another program before the server binds it.
                picked = [port for use, port in self._ports.items() if not given[use]]
                if attempt == _ATTEMPTS or not any(map(accepts_connections, picked)):
                    self._ports = given
                    raise

    def _require(self) -> None:
        """Raise LocalError when the server cannot be had here."""
        raise NotImplementedError

    def _launch(self) -> None:
        """Set and start ``_process`` on ``_ports``; return when the server can be used."""
        raise NotImplementedError

    def stop(self) -> None:
        """End the server in order."""
        if self._process is not None:
            self._process.stop()

    def kill(self) -> None:
        """kill -9 the server."""
        if self._process is not None:
            self._process.kill()

    def restart(self) -> None:
        """Kill the server if it runs and start it again on the same ports."""
        self.kill()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
