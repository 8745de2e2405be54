"""The thresholds of recovery, per fleet. Milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

_SECOND: Final = 1_000
_MINUTE: Final = 60 * _SECOND
_HOUR: Final = 60 * _MINUTE


@dataclass(frozen=True, slots=True)
class RecoveryPolicy:
    """When a job of a fleet is suspected, asked about, and given up."""

    #: Claimed for this long and never minted: a stale claim. Tuist: 300 s.
    stale_claim_ms: int = 5 * _MINUTE
    #: Minted for this long and not started: a floor on asking, not on acting. Tuist: 300 s.
    orphan_ms: int = 5 * _MINUTE
    #: After its runner was seen with another job: runners of one fleet swap jobs all the time,
    #: and the other half of a swap arrives within seconds.
    displaced_ms: int = 20 * _SECOND
    #: Queued for this long. Tuist: 1 h.
    stale_queue_ms: int = _HOUR
    #: GitHub fails a job that waited this long for a self-hosted runner.
    hopeless_ms: int = 24 * _HOUR
    #: Running for this long without an end: asked then, and again at the same interval.
    running_ms: int = _HOUR
    #: Whether a job that is rightly queued is requeued, because its autoscaler may have missed it.
    requeue_queued: bool = True

    #: An answer is good for this long.
    answer_ms: int = 5 * _MINUTE
    #: A question nobody answered is asked again after this long.
    ask_ms: int = 5 * _MINUTE
    #: After an answer that proves nothing: doubled with each, up to the most.
    ask_again_ms: int = _MINUTE
    ask_again_most_ms: int = 15 * _MINUTE
    #: That the job is not known is believed when three answers in a row say so, the last of them
    #: this long after the first.
    gone_ms: int = 5 * _MINUTE
    #: A proposal without a command is made again after this long: doubled with each, up to the
    #: most.
    propose_again_ms: int = _MINUTE
    propose_again_most_ms: int = 5 * _MINUTE
    #: From a command to the next one for the job: doubled with each, up to the most.
    cool_down_ms: int = 2 * _MINUTE
    cool_down_most_ms: int = _HOUR
    #: Commands per job; then it is left to a person.
    most_attempts: int = 5
    #: Requeues within the window beyond which a job is flapping.
    flapping: int = 3
    flapping_window_ms: int = _HOUR


@dataclass(frozen=True, slots=True)
class Policies:
    """The policy of each fleet."""

    default: RecoveryPolicy = RecoveryPolicy()
    by_fleet: Mapping[str, RecoveryPolicy] = field(default_factory=dict)

    def of(self, fleet: str) -> RecoveryPolicy:
        """The policy of a fleet."""
        return self.by_fleet.get(fleet, self.default)
