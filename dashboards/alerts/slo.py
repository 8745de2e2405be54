"""The goal for queue time, and how fast its budget is spent.

Of each length two windows: the long one says that it matters, the short one that it still goes on.
A job that never starts is in no histogram: RunnerQueueAge watches those.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dashboards import config
from dashboards.alerts.model import RUNNERS, Alert, Group, Recording, Severity, by

FLEET: Final = by("fleet")
SECONDS: Final = "runnerstream_job_queue_seconds"
#: As the exporter writes the bound of a bucket.
BOUND: Final = f"{float(config.QUEUE_SLO_S)}"
#: What may be late.
BUDGET: Final = round(1 - config.QUEUE_SLO, 6)

WINDOWS: Final = tuple(
    dict.fromkeys(window for _, long, short in config.BURNS for window in (short, long))
)


def late(window: str) -> str:
    """The share of jobs that waited for longer than the goal, as recorded."""
    return f"fleet:runnerstream_job_queue_late:ratio_rate{window}"


def jobs(window: str) -> str:
    """How many jobs there were, as recorded."""
    return f"fleet:runnerstream_job_queue_jobs:increase{window}"


def _recordings() -> Iterator[Recording]:
    for window in WINDOWS:
        total = f"sum {FLEET} (rate({SECONDS}_count[{window}]))"
        within = f'sum {FLEET} (rate({SECONDS}_bucket{{le="{BOUND}"}}[{window}]))'
        yield Recording(late(window), f"1 - {within}\n/ ({total} > 0)")
    for _, long, _ in config.BURNS:
        yield Recording(jobs(long), f"sum {FLEET} (increase({SECONDS}_count[{long}]))")


#: Name, severity and how long it must last, in the order of the burn rates.
_SAID: Final[tuple[tuple[str, Severity, str], ...]] = (
    ("JobQueueBurnFast", "critical", "2m"),
    ("JobQueueBurn", "critical", "15m"),
    ("JobQueueBurnSlow", "warning", "1h"),
    ("JobQueueBurnCreeping", "warning", "3h"),
)


def _alerts() -> Iterator[Alert]:
    for (name, severity, pending), (factor, long, short) in zip(_SAID, config.BURNS, strict=True):
        bound = f"{round(factor * BUDGET, 6):g}"
        yield Alert(
            name,
            severity,
            f"""{late(long)} > {bound}
and {late(short)} > {bound}
and {jobs(long)} >= {config.FEW}""",
            pending,
            f"The budget for queue time is spent {factor:g} times too fast",
            "In fleet {{ $labels.fleet }} {{ $value | humanizePercentage }} of the jobs of the "
            f"last {long} waited for more than {config.QUEUE_SLO_S} s.",
            RUNNERS,
        )


GROUP: Final = Group("queue_time", tuple(_alerts()), tuple(_recordings()))
