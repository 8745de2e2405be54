"""Telemetry: what dispatchers, pools, runners, schedulers and reconcilers say about themselves.

Producers post these to ``runners.events`` under any key. The pipeline checks them, sets their key
and writes them to ``runners.telemetry``, where all that is said about one subject stands in one
partition. Five families, one module each: each is a tuple of models, told apart by ``kind``.

As for lifecycle events only what identifies can refuse an event: an optional field with a value
that cannot be counts as missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final, Union, get_args

from pydantic import Field, TypeAdapter

from topics.events import dispatch, pools, reconcilers, runners, schedulers
from topics.events.base import PART, Event, FamilyName
from topics.models import Tick
from topics.reading import lenient
from topics.recovery import Depth

#: Every model by its family.
FAMILIES: Final[Mapping[FamilyName, tuple[type[Event], ...]]] = MappingProxyType(
    {
        "dispatch": dispatch.EVENTS,
        "pools": pools.EVENTS,
        "runners": runners.EVENTS,
        "schedulers": schedulers.EVENTS,
        "reconcilers": reconcilers.EVENTS,
    }
)


def kinds(model: type[Event]) -> tuple[str, ...]:
    """The kinds of a model: one, or several that say the same of different things."""
    return tuple(get_args(model.model_fields["kind"].annotation))


_FAMILY: Final[Mapping[str, FamilyName]] = MappingProxyType(
    {kind: name for name, models in FAMILIES.items() for model in models for kind in kinds(model)}
)
#: The model of each kind.
MODELS: Final[Mapping[str, type[Event]]] = MappingProxyType(
    {kind: model for models in FAMILIES.values() for model in models for kind in kinds(model)}
)
#: Every kind.
KINDS: Final = tuple(MODELS)

_EVERY: Final[Any] = Union[tuple(dict.fromkeys(MODELS.values()))]  # noqa: UP007 - made, not written
#: Parses a record of ``runners.events``.
EVENT: Final[TypeAdapter[Event]] = TypeAdapter(Annotated[_EVERY, Field(discriminator="kind")])
#: Parses a record of ``runners.telemetry``.
TELEMETRY_RECORD: Final[TypeAdapter[Event | Depth | Tick]] = TypeAdapter(
    Annotated[_EVERY | Depth | Tick, Field(discriminator="kind")]
)
lenient(EVENT, MODELS)


def family_of(event: Event) -> FamilyName:
    """The family that an event belongs to."""
    return _FAMILY[event.kind]


def key_of(event: Event) -> str:
    """The event's key in ``runners.telemetry``: family, fleet, and subject if any."""
    return PART.join((family_of(event), event.fleet, event.subject))


__all__ = [
    "EVENT", "FAMILIES", "KINDS", "MODELS", "PART", "TELEMETRY_RECORD", "Event", "FamilyName",
    "family_of", "key_of", "kinds",
]  # fmt: skip
