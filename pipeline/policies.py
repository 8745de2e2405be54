"""The rules of recovery as an operator writes them: per fleet, in seconds.

One JSON object: ``{"*": {"orphan": 120}, "linux-large": {"stale_queue": 7200, "per_hour": 20}}``.
``*`` is every fleet that is not named. A name is that of a field of
:class:`pipeline.recovery.RecoveryPolicy` or :class:`pipeline.fleet.FleetPolicy` without ``_ms``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Final

from pipeline.fleet.policy import FleetPolicy
from pipeline.fleet.policy import Policies as FleetPolicies
from pipeline.recovery.policy import Policies, RecoveryPolicy
from topics.recovery import Mode

#: The fleets that are not named.
OTHERS: Final = "*"


def policies(told: Mapping[str, Any], mode: Mode = Mode.DRY_RUN) -> tuple[Policies, FleetPolicies]:
    """What is told, for the fold of jobs and for that of fleets.

    Raises ValueError for a name that is none, and a value that cannot be.
    """
    jobs, fleets = RecoveryPolicy(), FleetPolicy(mode=mode)
    jobs, fleets = _changed(OTHERS, told.get(OTHERS, {}), jobs, fleets)
    by_fleet = {
        name: _changed(name, each, jobs, fleets) for name, each in told.items() if name != OTHERS
    }
    return (
        Policies(jobs, {name: each[0] for name, each in by_fleet.items()}),
        FleetPolicies(fleets, {name: each[1] for name, each in by_fleet.items()}),
    )


def names() -> dict[str, Any]:
    """Every name with its default, times in seconds."""
    found: dict[str, Any] = {}
    for default in (RecoveryPolicy(), FleetPolicy(mode=Mode.DRY_RUN)):
        for name, value in _values(default).items():
            found.setdefault(name.removesuffix("_ms"), _shown(name, value))
    return found


def _changed(
    fleet: str, told: Any, jobs: RecoveryPolicy, fleets: FleetPolicy
) -> tuple[RecoveryPolicy, FleetPolicy]:
    if not isinstance(told, Mapping):
        raise ValueError(f'{fleet}: expected an object such as {{"orphan": 120}}')
    known = {name.removesuffix("_ms") for name in (*_values(jobs), *_values(fleets))}
    unknown = sorted(set(told) - known)
    if unknown:
        raise ValueError(f"{fleet}: {unknown[0]!r} is not one of {', '.join(sorted(known))}")
    try:
        return (
            replace(jobs, **_wanted(fleet, told, _values(jobs))),
            replace(fleets, **_wanted(fleet, told, _values(fleets))),
        )
    except ValueError as error:
        raise ValueError(f"{fleet}: {error}") from None


def _wanted(fleet: str, told: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, before in known.items():
        said = told.get(name.removesuffix("_ms"))
        if said is None:
            continue
        if isinstance(before, Mode):
            found[name] = Mode(said)
        elif isinstance(before, bool) or isinstance(said, bool):
            if not (isinstance(before, bool) and isinstance(said, bool)):
                raise ValueError(f"{name.removesuffix('_ms')} is {said!r}")
            found[name] = said
        elif not isinstance(said, int | float) or said < 0 or said > 10**9:
            raise ValueError(f"{name.removesuffix('_ms')} is {said!r}, and no number that can be")
        else:
            found[name] = int(said * 1000) if name.endswith("_ms") else type(before)(said)
    return found


def _values(policy: RecoveryPolicy | FleetPolicy) -> dict[str, Any]:
    return {field.name: getattr(policy, field.name) for field in fields(policy)}


def _shown(name: str, value: Any) -> Any:
    return value / 1000 if name.endswith("_ms") else value
