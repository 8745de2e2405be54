"""What every telemetry event has, and the words of its fields."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints

from topics.envelope import Millis, Name, OrNull, Record, Word

#: The key of an event in ``runners.telemetry``: family, fleet and subject, parted by this.
PART: Final = "|"

_MONTH_MS: Final = 31 * 24 * 3_600_000

#: A duration in ms. Nothing that is measured takes longer than a month.
Ms = Annotated[int, Field(ge=0, le=_MONTH_MS, strict=True)]
#: How many of something.
Count = Annotated[int, Field(ge=0, le=2**53, strict=True)]
#: A fleet, a pool, a runner, a run by its name. No control characters: it is part of keys.
Named = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")]
#: The same where it may be unknown.
MaybeNamed = Annotated[
    Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f]*$")], OrNull("")
]
#: A short word such as an error code; empty when there is none.
Text = Annotated[Word, OrNull("")]

FamilyName = Literal["dispatch", "pools", "runners", "schedulers", "reconcilers"]


class Event(Record):
    """The envelope of telemetry, on ``runners.events`` and, keyed by subject, on
    ``runners.telemetry``.

    ``id`` names the statement: the same id twice counts once, so whoever sends again keeps it.
    ``key`` may be left out by producers: the pipeline sets it.
    """

    key: Annotated[Annotated[str, StringConstraints(max_length=1024)], OrNull("")] = ""
    fleet: Named

    @property
    def subject(self) -> str:
        """What within its fleet it is about. All that must be known together has one subject."""
        return ""

    @property
    def statement(self) -> str:
        """What counts once within its subject: the same end of the same task, told under two ids,
        is one statement."""
        return self.id


__all__ = [
    "PART", "Count", "Event", "FamilyName", "MaybeNamed", "Millis", "Ms", "Name", "Named", "Text",
]  # fmt: skip
