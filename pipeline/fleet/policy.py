"""What recovery may do to a fleet, as configured: its mode, budgets, breaker and patience."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from topics.recovery import Mode

SECOND_MS: Final = 1_000
MINUTE_MS: Final = 60 * SECOND_MS
HOUR_MS: Final = 60 * MINUTE_MS


@dataclass(frozen=True, slots=True)
class FleetPolicy:
    """The rules of one fleet. Times in milliseconds.

    Attributes:
        mode: unless a switch says otherwise.
        per_tick: commands of a tick of one partition, over all its fleets.
        per_hour: commands of the fleet.
        command_ttl_ms: after this a command need not be done, and counts as expired.
        cool_down_ms: between two commands for one job.
        breaker_failures: it opens when so many of the last ten endings are known,
        breaker_share: and this share of them are failures;
        breaker_open_ms: it lets nothing through for so long, then one command.
        wake_after_ms: jobs queued for longer, with idle runners there, are starved; and the time
            between two wake-ups.
        silent_after_ms: a runner that held a job and used to be heard of is lost after this.
    """

    mode: Mode = Mode.LIVE
    per_tick: int = 25
    per_hour: int = 200
    command_ttl_ms: int = 300 * SECOND_MS
    cool_down_ms: int = 120 * SECOND_MS
    breaker_failures: int = 5
    breaker_share: float = 0.5
    breaker_open_ms: int = 600 * SECOND_MS
    wake_after_ms: int = 300 * SECOND_MS
    silent_after_ms: int = 600 * SECOND_MS

    def __post_init__(self) -> None:
        """Raise ValueError for what is forgotten before it could count."""
        if self.cool_down_ms > HOUR_MS or self.wake_after_ms > HOUR_MS:
            raise ValueError(
                "cool_down_ms and wake_after_ms must be at most an hour: commands are not "
                f"remembered for longer; they are {self.cool_down_ms} and {self.wake_after_ms}"
            )
        if self.command_ttl_ms <= 0 or self.wake_after_ms <= 0 or self.silent_after_ms <= 0:
            raise ValueError(
                "command_ttl_ms, wake_after_ms and silent_after_ms must be positive, not "
                f"{self.command_ttl_ms}, {self.wake_after_ms} and {self.silent_after_ms}"
            )


@dataclass(frozen=True, slots=True)
class Policies:
    """The policy of every fleet: its own, else the default."""

    default: FleetPolicy = FleetPolicy()
    by_fleet: Mapping[str, FleetPolicy] = field(default_factory=lambda: MappingProxyType({}))

    def of(self, fleet: str) -> FleetPolicy:
        """The policy of a fleet."""
        return self.by_fleet.get(fleet, self.default)
