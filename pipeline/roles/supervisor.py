"""Keeps processes running beside this one, a role each: a crashed one is started again.

A process of its own for each role, because each keeps a core busy and a crash of one must not take
the others' memory with it. A child ends with this process, however that ends: it reads its standard
input, whose other end only we hold.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

#: The program that children run, before its options.
PROGRAM: Final = [sys.executable, "-m", "pipeline.cli"]
#: The exit code of a process that could not be started, as shells have it.
NOT_STARTED: Final = 127
#: How often a child is looked at. Seconds.
_LOOK_S: Final = 0.2


@dataclass(frozen=True)
class Pauses:
    """Times of a supervisor, seconds."""

    #: Before the first restart. It doubles up to the longest ...
    first: float = 1.0
    longest: float = 30.0
    #: ... and is the first again once a child has lived as long as this.
    healthy: float = 60.0
    #: From SIGTERM to SIGKILL. A sink writes what it has read in the meantime.
    grace: float = 20.0


@dataclass(frozen=True)
class Standing:
    """How the process of a role stands.

    Attributes:
        since: when it began to be as it is, by the supervisor's clock.
        restarts: how often it was started again.
        code: how it ended last; None when it never has.
        pause: how long it is waited before the next start, or was before the latest. Seconds.
        down_since: when it ended, by the supervisor's clock. None for one that was never down, or
            has lived longer since than the pause before it.
        failures: how often it ended since then.
    """

    role: str
    up: bool
    since: float
    restarts: int = 0
    code: int | None = None
    pause: float = 0.0
    down_since: float | None = None
    failures: int = 0


def ended(before: Standing, code: int, now: float, pauses: Pauses) -> Standing:
    """After the process has ended with ``code``."""
    lived = now - before.since
    fresh = before.pause == 0 or lived > pauses.healthy
    pause = pauses.first if fresh else min(pauses.longest, before.pause * 2)
    recovered = before.down_since is None or lived > before.pause
    return replace(
        before,
        up=False,
        since=now,
        code=code,
        pause=pause,
        down_since=now if recovered else before.down_since,
        failures=1 if recovered else before.failures + 1,
    )


def restarted(before: Standing, now: float) -> Standing:
    """After the process was started again."""
    return replace(before, up=True, since=now, restarts=before.restarts + 1)


def trouble(standing: Standing, now: float) -> str | None:
    """Why it is not to be relied on: it ended again as soon as it was started, or never was.

    One that ended once has its pause, and as long again to prove itself.
    """
    if standing.down_since is None or (standing.up and now - standing.since > standing.pause):
        return None
    down = now - standing.down_since
    if standing.failures < 2 and down <= 2 * standing.pause:
        return None
    return (
        f"the {standing.role} beside this worker has not stayed up for {down:.0f} s: it ended with "
        f"code {standing.code} and was started again {standing.restarts} times"
    )


class Supervisor:
    """Runs a process for each role of ``commands``, and a thread that watches it.

    ``start`` and ``stop`` are for the main thread; what it tells is for any.

    Args:
        commands: what each role's process runs.
        pauses: how long to wait, for tests.
    """

    def __init__(
        self,
        commands: Mapping[str, list[str]],
        pauses: Pauses = Pauses(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._commands = commands
        self._pauses = pauses
        self._clock = clock
        self._stopping = threading.Event()
        self._standings: dict[str, Standing] = {}
        self._threads = [
            threading.Thread(target=self._watch, args=(role,), name=f"{role}-supervisor",
                             daemon=True)
            for role in commands
        ]  # fmt: skip

    def standings(self) -> dict[str, Standing]:
        """By role, those that were started."""
        return dict(self._standings)

    def restarts(self) -> Mapping[str, tuple[bool, int]]:
        """By role, whether its process runs, and how often it was started again."""
        return {role: (each.up, each.restarts) for role, each in self.standings().items()}

    def troubles(self) -> list[str]:
        """What does not stay up, a sentence each."""
        now = self._clock()
        found = (trouble(each, now) for each in self.standings().values())
        return [text for text in found if text is not None]

    def start(self) -> None:
        """Start every process and watch it."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """SIGTERM to all at once; SIGKILL after a grace."""
        self._stopping.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(self._pauses.grace + 5)

    def _watch(self, role: str) -> None:
        standing = Standing(role, True, self._clock())
        while not self._stopping.is_set():
            self._standings[role] = standing
            code = self._live(role)
            if self._stopping.is_set():
                return
            standing = ended(standing, code, self._clock(), self._pauses)
            self._standings[role] = standing
            log.error("the %s ended with code %s; starting it again in %.0f s",
                      role, code, standing.pause)  # fmt: skip
            self._stopping.wait(standing.pause)
            standing = restarted(standing, self._clock())

    def _live(self, role: str) -> int:
        """One life of a role's process, to its own end or ours; the exit code."""
        try:
            child = self._launch(role)
        except OSError as error:
            # No memory, no processes left, or the program is being replaced: it may pass.
            log.error("the %s cannot be started: %s", role, error)
            return NOT_STARTED
        while child.poll() is None and not self._stopping.wait(_LOOK_S):
            pass
        if self._stopping.is_set():
            self._end(role, child)
        _close(child)
        return int(child.returncode)

    def _launch(self, role: str) -> subprocess.Popen[bytes]:
        paths = [str(_source()), os.environ.get("PYTHONPATH", "")]
        return subprocess.Popen(
            self._commands[role],
            stdin=subprocess.PIPE,
            # A session of its own: Ctrl-C reaches us only, and the child ends after us.
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )

    def _end(self, role: str, child: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        try:
            child.wait(self._pauses.grace)
        except subprocess.TimeoutExpired:
            log.warning("the %s did not end within %.0f s and is killed", role, self._pauses.grace)
            child.kill()
            child.wait()


def command(role: str, options: Iterable[str], ports: Iterable[tuple[str, int]]) -> list[str]:
    """What a child of the role runs. ``options`` stand before the command's name; ``ports`` are
    options for ports, and their values."""
    found = [*PROGRAM, *options, "worker", "--role", role, "--until-stdin-closes"]
    return [*found, *(each for option, port in ports for each in (option, str(port)))]


def _close(child: subprocess.Popen[bytes]) -> None:
    if child.stdin is not None:
        child.stdin.close()


def _source() -> Path:
    """The directory this package was imported from, so that a child imports the same."""
    return Path(__file__).resolve().parents[2]
