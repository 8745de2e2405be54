"""All dashboards, in the order in which people need them."""

from __future__ import annotations

from typing import Final

from dashboards.boards import act_runner, reconciler, runners, scheduler
from dashboards.model import Dashboard

BOARDS: Final[tuple[Dashboard, ...]] = (
    runners.BOARD, act_runner.BOARD, scheduler.BOARD, reconciler.BOARD,
)  # fmt: skip
