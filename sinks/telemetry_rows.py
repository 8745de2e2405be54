"""The tables of telemetry: one a family, one row an event, as it was said. Pure.

The columns follow from the models of :mod:`topics.events`: a family's table has a column for every
field that one of its models has, in their order, after those that all share. What a kind of event
does not have is NULL, 0 or empty in its row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Any, Final

from sinks.columns import Column, Columns, Row, Table
from topics.events import FAMILIES, Event, FamilyName, family_of

#: What every row says, beside the fields of its family.
_SHARED: Final = Columns(
    Column("fleet"),
    Column("subject"),
    Column("kind"),
    Column("occurred_at"),
    Column("id"),
    Column("received_at"),
    Column("source"),
    Column("trace", lambda event: event.trace or ""),
)
_NAMES: Final[Mapping[FamilyName, str]] = MappingProxyType(
    {
        "dispatch": "dispatch_events",
        "pools": "pool_events",
        "runners": "runner_events",
        "schedulers": "scheduler_events",
        "reconcilers": "reconciler_events",
    }
)
#: Numbers that no event of a kind has are NULL, not 0: a sample of 0 says something.
_NULLABLE: Final = frozenset({"enabled", "depth", "wall_ms"})


def fields(models: Iterable[type[Event]]) -> tuple[str, ...]:
    """The fields that these models have beyond the envelope, each once."""
    found = (name for model in models for name in model.model_fields)
    return tuple(dict.fromkeys(name for name in found if name not in Event.model_fields))


def _value(name: str, absent: Any) -> Callable[[Event], Any]:
    def value(event: Event) -> Any:
        return _plain(getattr(event, name, absent))

    def tuples(event: Event) -> Any:
        # The driver knows no map of tuples.
        return [(of, *_plain(said)) for of, said in getattr(event, name, absent).items()]

    return tuples if name == "histograms" else value


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {_plain(key): _plain(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value


def _absent(name: str, models: Iterable[type[Event]]) -> Any:
    """What stands in a row whose event has no such field."""
    declared = next(model.model_fields[name] for model in models if name in model.model_fields)
    if name in _NULLABLE or name.endswith("_at"):
        return None
    # Not the default itself: who says nothing of an attempt is not at its first.
    blank = "" if declared.is_required() else declared.get_default()
    if isinstance(blank, str):
        return 0 if declared.annotation is int else ""
    return type(blank)() if blank else blank


def _table(family: FamilyName) -> Table:
    models = FAMILIES[family]
    columns = (Column(name, _value(name, _absent(name, models))) for name in fields(models))
    return Table(_NAMES[family], Columns(*_SHARED, *columns))


#: The table of each family.
TABLES: Final[Mapping[FamilyName, Table]] = MappingProxyType(
    {family: _table(family) for family in FAMILIES}
)


def rows_of(event: Event) -> Iterable[tuple[Table, Row]]:
    """An event's row."""
    table = TABLES[family_of(event)]
    yield table, table.row(event)
