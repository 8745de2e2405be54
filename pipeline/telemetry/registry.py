"""The families of telemetry: all of them, and what they count together."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from pipeline.metrics import Counter, Label, Metric
from pipeline.telemetry import dispatch, pools, reconcilers, schedulers
from pipeline.telemetry.subject import Family

#: By name.
FAMILIES: Final[Mapping[str, Family]] = MappingProxyType(
    {
        family.name: family
        for family in (dispatch.FAMILY, pools.FAMILY, schedulers.FAMILY, reconcilers.FAMILY)
    }
)

_FAMILY: Final = Label("family", tuple(FAMILIES))

EVENTS: Final = Counter[tuple[str]](
    "telemetry_events", "Telemetry events understood.", "events", (_FAMILY,)
)
LATE_EVENTS: Final = Counter[tuple[str]](
    "telemetry_late",
    "Telemetry events that came a quarter of an hour after they had happened: they change what is "
    "known, and are in ClickHouse, but count in no other metric.",
    "events",
    (_FAMILY,),
)

#: All metrics of telemetry.
CATALOGUE: Final[tuple[Metric[Any], ...]] = (
    EVENTS,
    LATE_EVENTS,
    *(metric for family in FAMILIES.values() for metric in family.metrics),
)
