"""The embedded broker and the embedded ClickHouse together, in this process or detached.

    with LocalStack(directory) as stack:
        run(stack.kafka_bootstrap, stack.clickhouse_url)

A stack owns its directory while it runs: it holds a lock there, which the kernel takes back
however the owner ends, and a state file, which tells others where the servers are. `up`, `status`
and `down` do the same for a stack that outlives the command that started it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

from pipeline.local.broker import EmbeddedBroker, broker_binary
from pipeline.local.clickhouse import EmbeddedClickHouse, require_clickhouse
from pipeline.local.process import LocalError, MissingServer, ServerFailed

#: The ports of a detached stack, next to the usual ones and seldom taken.
KAFKA_PORT = 19092
CLICKHOUSE_PORT = 19000
CLICKHOUSE_HTTP_PORT = 18123

Progress = Callable[[str], None]

_LOCK = "stack.lock"
_STATE = "stack.json"
_LOG = "stack.log"
_PARTS = ("broker", "clickhouse")
_ERROR_MARK = "error: "
_POLL_SECONDS = 0.05
# How long servers of a killed owner may take to leave their ports and files.
_AFTER_CRASH_SECONDS = 10.0


class StackRunning(LocalError):
    """Another process already runs a stack in this directory."""


@dataclass(frozen=True)
class StackStatus:
    """What is known of the stack in a directory.

    Attributes:
        running: whether its owner lives and both servers have answered.
        data_dir: the directory.
        pid: the owner's process id; 0 when there is none.
        started_at: when it became ready, seconds since 1970; 0 when it is not.
        kafka_bootstrap: `host:port`; empty, like the following, when it does not run.
        clickhouse_url: native protocol, with the credentials of the program's user.
        clickhouse_reader_url: native protocol, with the credentials of the read-only user.
        clickhouse_http_url: HTTP, without credentials.
        broker_pid: the broker's process id; 0 when it does not run.
        clickhouse_pid: ClickHouse's process id; 0 when it does not run.
    """

    running: bool
    data_dir: str
    pid: int = 0
    started_at: float = 0.0
    kafka_bootstrap: str = ""
    clickhouse_url: str = ""
    clickhouse_reader_url: str = ""
    clickhouse_http_url: str = ""
    broker_pid: int = 0
    clickhouse_pid: int = 0


def default_data_dir(name: str = "local") -> Path:
    """Where this platform keeps such data: a directory of the user, one per `name`."""
    home = Path.home()
    if sys.platform == "darwin":
        base = home / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_STATE_HOME") or home / ".local" / "state")
    return base / "runnerstream" / name


def unavailable() -> str | None:
    """Why there can be no stack on this machine, in one sentence; None when there can."""
    try:
        require_clickhouse()
        broker_binary()
    except MissingServer as error:
        return str(error)
    return None


class LocalStack:
    """A broker and a ClickHouse server on loopback, as children of this process.

    They end with `stop`, and also when this process dies in any way. Topics live in memory and
    start empty every time; so a sink must not take offsets of one run for those of another (the
    broker's cluster id is new at each start).

    Args:
        data_dir: everything on disk; created when absent. Only the stack's own files in it are
            ever deleted.
        kafka_port: 0 picks a free port, and so for the other two.
        clickhouse_port: of the native protocol.
        clickhouse_http_port: of HTTP.
        keep_data: whether ClickHouse's data stay after `stop` and are taken up by the next start.
    """

    def __init__(
        self,
        data_dir: Path,
        kafka_port: int = 0,
        clickhouse_port: int = 0,
        clickhouse_http_port: int = 0,
        keep_data: bool = False,
    ) -> None:
        self.data_dir = data_dir
        self.keep_data = keep_data
        self.broker = EmbeddedBroker(data_dir / "broker", kafka_port)
        self.clickhouse = EmbeddedClickHouse(
            data_dir / "clickhouse", clickhouse_port, clickhouse_http_port
        )
        self._lock: IO[str] | None = None
        self._started_at = 0.0

    @property
    def kafka_bootstrap(self) -> str:
        """What Kafka clients take as `bootstrap_servers`."""
        return self.broker.bootstrap

    @property
    def clickhouse_url(self) -> str:
        """`clickhouse://user:password@host:port/database` of the program's user."""
        return self.clickhouse.url

    @property
    def clickhouse_reader_url(self) -> str:
        """The same of the read-only user, for dashboards."""
        return self.clickhouse.reader_url

    @property
    def clickhouse_http_url(self) -> str:
        """ClickHouse's HTTP interface, without credentials."""
        return self.clickhouse.http_url

    def start(self, progress: Progress | None = None) -> None:
        """Start both servers and wait until they answer.

        Args:
            progress: gets a line of text before and after each step.

        Raises:
            StackRunning: when another process runs a stack in this directory.
            MissingServer: when a wheel is absent or has nothing for this platform.
            PortTaken: when another program listens on a port that was asked for.
            ServerFailed: when a server ends or does not answer.
        """
        tell = progress or (lambda _: None)
        require_clickhouse()
        broker_binary()
        self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = _acquire(self.data_dir)
        try:
            crashed = (self.data_dir / _STATE).exists()
            if crashed:
                tell("the stack that ran here before was killed: taking over its directory")
            self._write_state()
            if not self.keep_data:
                self._discard_data()
            patience = _AFTER_CRASH_SECONDS if crashed else 0.0
            tell("starting the broker")
            began = time.monotonic()
            self.broker.start(patience)
            tell(f"broker ready at {self.kafka_bootstrap} ({time.monotonic() - began:.1f} s)")
            tell("starting ClickHouse")
            began = time.monotonic()
            self._start_clickhouse(patience, crashed)
            tell(
                f"ClickHouse ready at port {self.clickhouse.port} (native) and "
                f"{self.clickhouse.http_port} (HTTP) ({time.monotonic() - began:.1f} s)"
            )
            self._started_at = time.time()
            self._write_state()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop both servers, discard what is not to be kept, let go of the directory."""
        if self._lock is None:
            return
        self.clickhouse.stop()
        self.broker.stop()
        self._started_at = 0.0
        if not self.keep_data:
            self._discard_data()
        (self.data_dir / _STATE).unlink(missing_ok=True)
        self._lock.close()
        self._lock = None

    def status(self) -> StackStatus:
        """What runs now, by this object."""
        ready = self._started_at > 0
        return StackStatus(
            running=ready and self.broker.alive() and self.clickhouse.alive(),
            data_dir=str(self.data_dir),
            pid=os.getpid() if self._lock is not None else 0,
            started_at=self._started_at,
            kafka_bootstrap=self.kafka_bootstrap if ready else "",
            clickhouse_url=self.clickhouse_url if ready else "",
            clickhouse_reader_url=self.clickhouse_reader_url if ready else "",
            clickhouse_http_url=self.clickhouse_http_url if ready else "",
            broker_pid=self.broker.pid or 0,
            clickhouse_pid=self.clickhouse.pid or 0,
        )

    def __enter__(self) -> LocalStack:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start_clickhouse(self, patience: float, crashed: bool) -> None:
        try:
            self.clickhouse.start(patience)
        except ServerFailed:
            # A killed owner's server may hold the lock on its data for a moment longer.
            if not crashed:
                raise
            time.sleep(1.0)
            self.clickhouse.start(patience)

    def _discard_data(self) -> None:
        for part in _PARTS:
            shutil.rmtree(self.data_dir / part, ignore_errors=True)

    def _write_state(self) -> None:
        state = self.data_dir / _STATE
        draft = state.with_suffix(".tmp")
        # It holds passwords, so it is nobody else's to read, from its first byte on.
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
            json.dump(asdict(self.status()), out)
        draft.replace(state)


def up(
    data_dir: Path,
    kafka_port: int = KAFKA_PORT,
    clickhouse_port: int = CLICKHOUSE_PORT,
    clickhouse_http_port: int = CLICKHOUSE_HTTP_PORT,
    keep_data: bool = True,
    progress: Progress | None = None,
    timeout: float = 90.0,
) -> StackStatus:
    """Start a stack in a process of its own, which outlives this one; wait until it is ready.

    Args:
        data_dir: as for `LocalStack`, and so the ports; the process logs to `stack.log` in it.
        keep_data: whether ClickHouse's data survive `down`.
        progress: gets the lines that `LocalStack.start` gives.
        timeout: seconds until it must be ready.

    Raises:
        StackRunning: when a stack runs in this directory already.
        LocalError: with the process's own message, when it fails.
    """
    running = status(data_dir)
    if running.pid:
        raise _running_error(data_dir, running)
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = data_dir / _LOG
    options = {
        "data_dir": str(data_dir),
        "kafka_port": kafka_port,
        "clickhouse_port": clickhouse_port,
        "clickhouse_http_port": clickhouse_http_port,
        "keep_data": keep_data,
    }
    # The same code that runs here must run there, installed or not, whatever the directory.
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    with log.open("w") as output:
        owner = subprocess.Popen(
            [sys.executable, "-m", "pipeline.local", json.dumps(options)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            start_new_session=True,
        )
    deadline = time.monotonic() + timeout
    with log.open() as lines:
        while True:
            ended = owner.poll() is not None
            for line in lines:
                if line.startswith(_ERROR_MARK):
                    owner.wait()
                    raise LocalError(line.removeprefix(_ERROR_MARK).strip())
                if progress is not None:
                    progress(line.rstrip())
            now = status(data_dir)
            if now.running and now.pid == owner.pid:
                return now
            if ended:
                raise LocalError(f"the local stack ended while starting: see {log}")
            if time.monotonic() > deadline:
                owner.kill()
                raise LocalError(f"the local stack was not ready within {timeout:g} s: see {log}")
            time.sleep(_POLL_SECONDS)


def status(data_dir: Path) -> StackStatus:
    """What runs in `data_dir`, in whatever process; what a killed owner left there is ignored."""
    if not _locked(data_dir):
        return StackStatus(running=False, data_dir=str(data_dir))
    try:
        found = StackStatus(**json.loads((data_dir / _STATE).read_text()))
        both = _exists(found.broker_pid) and _exists(found.clickhouse_pid)
        return replace(found, running=found.running and both)
    except (OSError, ValueError, TypeError):
        # The owner has just taken the lock, or is about to let it go.
        return StackStatus(running=False, data_dir=str(data_dir))


def down(data_dir: Path, timeout: float = 30.0) -> bool:
    """End the stack that runs in `data_dir`, whoever owns it; False when there was none.

    After `timeout` seconds its owner is killed, and the servers die with it.
    """
    owner = status(data_dir).pid
    if not owner:
        (data_dir / _STATE).unlink(missing_ok=True)
        return False
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(owner, number)
        except ProcessLookupError:
            pass
        except PermissionError as error:
            raise LocalError(
                f"the local stack in {data_dir} belongs to process {owner} of another user"
            ) from error
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if not _locked(data_dir):
                (data_dir / _STATE).unlink(missing_ok=True)
                return True
            time.sleep(_POLL_SECONDS)
    raise LocalError(f"process {owner} keeps the lock of {data_dir} and does not end")


def _acquire(data_dir: Path) -> IO[str]:
    """The lock of the directory, for as long as the returned file is open."""
    import fcntl  # not on Windows, where there is no embedded ClickHouse either

    lock = (data_dir / _LOCK).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise _running_error(data_dir, status(data_dir)) from error
    return lock


def _locked(data_dir: Path) -> bool:
    import fcntl

    try:
        lock = (data_dir / _LOCK).open("r+")
    except OSError:
        return False
    with lock:
        try:
            # Shared, so that two who ask at once do not take each other for an owner.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0


def _running_error(data_dir: Path, found: StackStatus) -> StackRunning:
    return StackRunning(
        f"a local stack runs in {data_dir} already (process {found.pid or 'unknown'}): end it "
        "with `runnerstream local down`, or choose another directory"
    )


def own(options: str) -> int:
    """The process behind `up`: hold a stack until a signal, or until one of its servers dies.

    Args:
        options: the arguments of `LocalStack` as JSON.

    Returns:
        The exit code.
    """
    parsed = json.loads(options)
    stack = LocalStack(**{**parsed, "data_dir": Path(parsed["data_dir"])})
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    try:
        stack.start(lambda line: print(line, flush=True))
    except LocalError as error:
        print(_ERROR_MARK + " ".join(str(error).split()), flush=True)
        return 1
    failed = False
    while not over.wait(0.25):
        if not stack.status().running:
            # Half a stack helps nobody, and an in-memory broker cannot come back as it was.
            print(_ERROR_MARK + "a server ended by itself: stopping the other", flush=True)
            failed = True
            break
    stack.stop()
    return int(failed)
