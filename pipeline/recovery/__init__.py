"""Which jobs are stuck, and what to do about it. Pure.

Rules over (a job's facts, the time of a tick, a policy): nothing, a question, or a proposal. What
is proposed is decided by the fleet (:mod:`pipeline.fleet`); here nothing is commanded.
"""

from pipeline.recovery.judge import (
    Ask,
    Judgement,
    Propose,
    Tell,
    is_left,
    judge,
    next_look,
    open_stall,
)
from pipeline.recovery.policy import Policies, RecoveryPolicy
from pipeline.recovery.rules import Suspect, suspect

__all__ = [
    "Ask",
    "Judgement",
    "Policies",
    "Propose",
    "RecoveryPolicy",
    "Suspect",
    "Tell",
    "is_left",
    "judge",
    "next_look",
    "open_stall",
    "suspect",
]
