"""The programs that the demo starts: each logs to a file of its own, and ends when we do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.commands.failure import Failure

#: How long one may take to end before it is killed. Seconds.
_END_S = 15.0
_ROOT = Path(__file__).resolve().parents[2]


def write_private(file: Path, text: str) -> None:
    """Write a file that only we can read, from its first byte on."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(text)


class Children:
    """Commands of ``runnerstream`` by name. They hold the other end of a pipe of ours: their
    arguments must say ``--until-stdin-closes``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __bool__(self) -> bool:
        """Whether any was started and not ended."""
        return bool(self._running)

    def start(self, name: str, settings: dict[str, str], arguments: Sequence[str]) -> None:
        """Start one, with these settings as environment and none of ours."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("RUNNERSTREAM_")}
        paths = os.pathsep.join(filter(None, [str(_ROOT), inherited.get("PYTHONPATH", "")]))
        with self._log(name).open("wb") as output:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-m", "pipeline.cli", *arguments],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={**inherited, **settings, "PYTHONPATH": paths},
                start_new_session=True,
            )

    def check(self) -> None:
        """Raise :class:`Failure` when one has ended by itself."""
        for name, child in self._running.items():
            if child.poll() is not None:
                raise Failure(f"the {name} ended with code {child.returncode}", self.hint(name))

    def hint(self, name: str) -> str:
        """The end of its log."""
        lines = self._log(name).read_text(errors="replace").splitlines()[-8:]
        return "\n  ".join([f"the end of {self._log(name)}:", *lines])

    def end(self, name: str) -> None:
        """End one, and wait until it has ended."""
        child = self._running.pop(name)
        child.terminate()
        try:
            child.wait(_END_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        finally:
            if child.stdin is not None:
                child.stdin.close()

    def end_all(self) -> None:
        """End all of them at the same time."""
        for child in self._running.values():
            child.terminate()
        for name in list(self._running):
            self.end(name)

    def _log(self, name: str) -> Path:
        return self._directory / f"{name}.log"
