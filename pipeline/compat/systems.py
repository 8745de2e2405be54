"""The declarations of all systems, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from pipeline.compat import act_runner, gastown, stellaops, tuist
from pipeline.compat.model import System

SYSTEMS: Final[Mapping[str, System]] = {
    each.name: each
    for each in (
        tuist.SYSTEM,
        act_runner.ACT_RUNNER,
        act_runner.GITEA_RUNNER,
        stellaops.SYSTEM,
        gastown.SYSTEM,
    )
}


def systems(names: Iterable[str]) -> list[System]:
    """Those of these names."""
    return [SYSTEMS[name] for name in names]
