"""A role that does nothing but run, beside those of the product: ``python -m`` this module.

It writes its process id into the file that ``TOY_PIDS`` names, a line for each start. The first
role, which would need a broker, waits as well. Its standings go to ``TOY_STANDINGS``.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from pipeline.roles import ROLES, Role, supervisor
from pipeline.roles.supervisor import Supervisor
from pipeline.settings import Settings

MODULE = "tests.support.toy_role"


def note_pid() -> None:
    """Tell the test that this process runs."""
    with Path(os.environ["TOY_PIDS"]).open("a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")


def cook(settings: Settings, stop: threading.Event, beside: Supervisor) -> int:
    """Run until told to stop."""
    note_pid()
    stop.wait()
    return 0


def serve(settings: Settings, stop: threading.Event, beside: Supervisor) -> int:
    """The first role: has the others run beside it, and tells how they stand."""
    beside.start()
    told = Path(os.environ["TOY_STANDINGS"])
    try:
        while not stop.wait(0.05):
            part = told.with_suffix(".part")
            part.write_text(json.dumps(beside.restarts()), encoding="utf-8")
            part.replace(told)
    finally:
        beside.stop()
    return 0


COOK = Role("cook", "meals for those who wait", cook, suffix="-cook", reads=("runners.jobs",))


def main() -> None:
    """The command line, with these roles instead of the product's in a worker."""
    from pipeline.cli import main as program

    first = Role("serve", "tables", serve)
    ROLES.clear()
    ROLES.update({first.name: first, COOK.name: COOK})
    supervisor.PROGRAM[:] = [sys.executable, "-m", MODULE]
    program(prog_name="runnerstream")


if __name__ == "__main__":
    main()
