"""What is known of webhooks that never arrived: the records of ``runners.missed`` (compacted).

One of each delivery that may be missed, one of each hook's list of deliveries, and one of each
repository whose runs are looked through. A null value means that nothing is known any more.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from topics.envelope import Millis, Name, Record, ShortText

Number = Annotated[int, Field(ge=0)]


class Over(StrEnum):
    """Why nobody asks for a missed delivery any more."""

    #: It failed as often as it is asked for.
    ATTEMPTS = "attempts"
    #: It is older than what is asked for.
    EXPIRED = "expired"
    #: The provider does not have it any more.
    GONE = "gone"


class MissedDelivery(Record):
    """A delivery, of whose attempts one failed or waits, or a later one succeeded.

    Attempts are those of one GUID in the list of one hook. Merging two is a join.
    """

    kind: Literal["missed.delivery"] = "missed.delivery"
    hook: Name
    guid: Name
    #: The id of the first attempt; 0: it was not seen yet.
    first: Number = 0
    #: The time of the earliest attempt that was seen.
    at: Millis
    #: When one succeeded.
    good_at: Millis | None = None
    #: Ids of redeliveries that failed, and of attempts that wait, with their times.
    failed: tuple[Number, ...] = ()
    waits: dict[int, Millis] = {}
    #: How often we asked, and when somebody asked last.
    asks: Number = 0
    asked_at: Millis | None = None
    #: It was told to be missed.
    missed: bool = False
    over: Over | None = None


class Gap(BaseModel):
    """A part of a list that was not read: from ``above`` down to ``floor``; times in ms."""

    model_config = ConfigDict(frozen=True)

    #: Where the provider goes on; empty: at the newest.
    cursor: ShortText = ""
    above: int
    floor: int


class HookSeen(Record):
    """How far the list of a hook was read."""

    kind: Literal["missed.hook"] = "missed.hook"
    #: All that is older was seen, but for the gaps; None: nothing was.
    seen_to: Millis | None = None
    #: The newest first.
    gaps: tuple[Gap, ...] = ()


class RunsTold(Record):
    """Which runs of a repository were told as facts, and as of when."""

    kind: Literal["missed.runs"] = "missed.runs"
    #: By the run's id: its ``updated_at``.
    told: dict[str, ShortText] = {}


MISSED: Final[TypeAdapter[MissedDelivery | HookSeen | RunsTold]] = TypeAdapter(
    Annotated[MissedDelivery | HookSeen | RunsTold, Field(discriminator="kind")]
)
