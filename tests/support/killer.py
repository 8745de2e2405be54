"""A worker that kills itself at a chosen step: ``python -m tests.support.killer``.

``TEST_KILL_AT`` names the step (``folded``, ``outputs``, ``windows``, ``states``, ``visible``,
``acked``), ``TEST_KILL_AFTER`` how many transactions pass first, ``TEST_STEPS`` the order of the
durable steps (for the control that swaps two of them). It dies by SIGKILL: no handler, no flush,
no commit; ``TEST_KILL_BY=raise`` raises in the agent instead.
"""

from __future__ import annotations

import os
import signal
import sys

import uvloop

from pipeline.agents.transaction import STEPS
from pipeline.settings import load
from pipeline.worker import Worker


def main() -> int:
    kill_at = os.environ.get("TEST_KILL_AT", "")
    left = int(os.environ.get("TEST_KILL_AFTER", "0"))
    steps = tuple(os.environ.get("TEST_STEPS", ",".join(STEPS)).split(","))

    def observer(step: str) -> None:
        nonlocal left
        if step == kill_at:
            left -= 1
            if left < 0 and os.environ.get("TEST_KILL_BY") == "raise":
                raise RuntimeError(f"told to fail at {step}")
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    uvloop.install()
    return Worker(load(), observer=observer, steps=steps).run()


if __name__ == "__main__":
    sys.exit(main())
