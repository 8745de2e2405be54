"""A worker that kills itself at a chosen step: ``python -m tests.support.killer``.

``TEST_KILL_AT`` names the step (``folded``, a durable step of the fold, ``visible``, ``acked``),
``TEST_KILL_AFTER`` how many transactions pass first, ``TEST_STEPS`` the order of the
durable steps and ``TEST_FENCED=0`` that they are no Kafka transaction (for the control that swaps
two of them). All this is about the jobs' fold, or about the one that ``TEST_FOLD``
(``module:function``) declares, which runs beside it. It dies by SIGKILL: no handler, no flush,
no commit; ``TEST_KILL_BY=raise`` raises in the agent instead, ``TEST_KILL_BY=stop`` stops the
process there by SIGSTOP, once, until somebody continues it. ``TEST_BREAK=n`` gives it a bug that
refuses one in n deliveries, ``TEST_CLOCK_OFF_S`` a clock that is so many seconds ahead.
"""

from __future__ import annotations

import tests.support.clock  # noqa: F401 - before whatever keeps a reference to the clock

# isort: split
import importlib
import os
import signal
import sys
from typing import Any

from pipeline import folds
from pipeline.providers import github
from pipeline.settings import load
from pipeline.worker import Worker, is_fenced
from topics.models import Delivery


def main() -> int:
    kill_at = os.environ.get("TEST_KILL_AT", "")
    left = int(os.environ.get("TEST_KILL_AFTER", "0"))
    settings = load()
    others = folds.OTHERS
    stage = folds.jobs(settings).stage
    if told := os.environ.get("TEST_FOLD"):
        module, _, name = told.partition(":")
        declare = getattr(importlib.import_module(module), name)
        if declare not in others:
            others = (*others, declare)
        stage = declare(settings).stage
    steps = {}
    if told := os.environ.get("TEST_STEPS"):
        steps[stage] = tuple(told.split(","))

    def observer(at: str, step: str) -> None:
        nonlocal left
        if (at, step) == (stage, kill_at):
            left -= 1
            if left < 0 and os.environ.get("TEST_KILL_BY") == "raise":
                raise RuntimeError(f"told to fail at {step}")
            if os.environ.get("TEST_KILL_BY") == "stop":
                if left == -1:
                    os.kill(os.getpid(), signal.SIGSTOP)
            elif left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    if os.environ.get("TEST_BREAK"):
        break_the_provider(int(os.environ["TEST_BREAK"]))
    fenced = os.environ.get("TEST_FENCED", "1") == "1"
    fenced = fenced and is_fenced(settings)
    return Worker(settings, others=others, observer=observer, steps=steps, fenced=fenced).run()


def break_the_provider(every: int) -> None:
    """Make the worker refuse one in so many deliveries, as a bug in a release would."""
    whole = github.facts

    def buggy(delivery: Delivery) -> Any:
        if int(delivery.id[:8], 16) % every == 0:
            raise ValueError("a bug of this release")
        return whole(delivery)

    github.facts = buggy  # type: ignore[assignment]


if __name__ == "__main__":
    sys.exit(main())
