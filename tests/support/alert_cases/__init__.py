"""Cases of every alert over metrics."""

from __future__ import annotations

from typing import Final

from tests.support.alert_cases.act_runner import ACT_RUNNER
from tests.support.alert_cases.model import Cases, Fires, Silent, checks_of, minutes
from tests.support.alert_cases.peers import RECONCILER, SCHEDULER
from tests.support.alert_cases.pipeline import BLIND, PIPELINE, SINK, WEBHOOKS
from tests.support.alert_cases.recovery import RECOVERY
from tests.support.alert_cases.runners import QUEUE_TIME, RUNNERS

__all__ = ["CASES", "Cases", "Fires", "Silent", "checks_of", "minutes"]

CASES: Final[tuple[Cases, ...]] = (
    *RUNNERS, *QUEUE_TIME, *RECOVERY, *ACT_RUNNER, *SCHEDULER, *RECONCILER, *PIPELINE, *SINK,
    *WEBHOOKS, *BLIND,
)  # fmt: skip
