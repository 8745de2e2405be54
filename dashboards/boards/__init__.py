"""All dashboards, in the order in which people need them."""

from __future__ import annotations

from typing import Final

from dashboards.boards import act_runner, jobs, pipeline, reconciler, recovery, runners, scheduler
from dashboards.model import Dashboard

BOARDS: Final[tuple[Dashboard, ...]] = (
    runners.BOARD, jobs.BOARD, recovery.BOARD, act_runner.BOARD, scheduler.BOARD,
    reconciler.BOARD, pipeline.BOARD,
)  # fmt: skip
