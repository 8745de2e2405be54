"""May this command go? Asked of everything that is known of the fleet. Pure.

The order of the reasons is fixed: what a person said, then what the endings say, then this job,
then the budgets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pipeline.fleet.policy import HOUR_MS, FleetPolicy
from pipeline.fleet.state import Fleet
from topics.recovery import BreakerState, Mode, Switch, Thrown, Why

#: The scope of a switch for all fleets.
EVERYWHERE: Final = ""


def switch_of(switches: Mapping[str, Switch], fleet: str) -> Switch | None:
    """The switch that counts for a fleet: of its own and that for all, the one thrown last.

    So a pause of everything stops also a fleet that was once set live by itself. One that was
    taken back says nothing.
    """
    both = [switches.get(scope) for scope in (EVERYWHERE, fleet)]
    thrown = [each for each in both if each is not None and each.mode is not None]
    return max(thrown, key=lambda each: (each.occurred_at, each.id), default=None)


def thrown(switches: Mapping[str, Switch], fleet: str) -> Thrown | None:
    """The same, as it is shown."""
    switch = switch_of(switches, fleet)
    if switch is None or switch.mode is None:
        return None
    return Thrown(
        fleet=switch.fleet,
        mode=switch.mode,
        who=switch.who,
        reason=switch.reason,
        at=switch.occurred_at,
    )


def mode_of(switches: Mapping[str, Switch], fleet: str, policy: FleetPolicy) -> Mode:
    """What recovery may do in a fleet."""
    switch = switch_of(switches, fleet)
    return policy.mode if switch is None or switch.mode is None else switch.mode


def why_not(
    fleet: Fleet, job_key: str, policy: FleetPolicy, mode: Mode, clock: int, in_tick: int
) -> Why | None:
    """Why a command for the job (of the fleet: an empty key) is withheld; None: it may go.

    ``in_tick`` counts the commands of this tick in the partition.
    """
    if mode is Mode.PAUSED:
        return Why.PAUSED
    if mode is Mode.DRY_RUN:
        return Why.DRY_RUN
    breaker = fleet.breaker(policy)
    state = breaker.state(clock)
    if state is BreakerState.OPEN:
        return Why.BREAKER
    if state is BreakerState.HALF_OPEN and fleet.in_flight(clock):
        return Why.BREAKER
    if _cooling(fleet, job_key, policy, clock):
        return Why.COOLING
    if in_tick >= policy.per_tick:
        return Why.BUDGET_TICK
    if fleet.issued_since(clock - HOUR_MS) >= policy.per_hour:
        return Why.BUDGET_HOUR
    return None


def _cooling(fleet: Fleet, job_key: str, policy: FleetPolicy, clock: int) -> bool:
    """Whether a command for the job is in flight, or the last one is too young."""
    if not job_key:
        return False  # the fleet's own has its cool-down before it is asked for
    return any(
        fleet.flies(each, clock)
        # What was refused has done nothing that would need time.
        or (each.occurred_at > clock - policy.cool_down_ms and not fleet.was_refused(each))
        for each in fleet.issued_for(job_key)
    )
