"""All dashboards, in the order in which people need them."""

from __future__ import annotations

from typing import Final

from dashboards.boards import pipeline, recovery, runners
from dashboards.model import Dashboard

BOARDS: Final[tuple[Dashboard, ...]] = (runners.BOARD, recovery.BOARD, pipeline.BOARD)
