"""A hook's list of deliveries at its provider, and how one of them is sent again.

The protocol behind which GitHub's API stands. Gitea and Forgejo show their deliveries on pages only
and have no API for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Came(StrEnum):
    """How an attempt to deliver ended."""

    YES = "yes"
    NO = "no"
    #: It was not made yet, or is under way.
    WAITS = "waits"


@dataclass(frozen=True)
class Attempt:
    """One attempt to deliver, as the list has it. A delivery has one GUID in all attempts.

    Attributes:
        at: in ms since the epoch.
        redelivery: whether somebody asked for it; the first attempt is none.
    """

    id: int
    guid: str
    at: int
    event: str
    redelivery: bool
    came: Came


@dataclass(frozen=True)
class Page:
    """A part of the list, the newest first. ``cursor`` is where it goes on; empty: nowhere."""

    attempts: Sequence[Attempt]
    cursor: str


class Asked(StrEnum):
    """What came of asking for a redelivery."""

    DONE = "done"
    #: The provider does not have it any more.
    GONE = "gone"
    #: The provider does not want to, this time.
    REFUSED = "refused"
    #: It was not asked: limits, or we may not.
    NOT = "not"
    #: Nobody knows, or the provider failed.
    FAILED = "failed"


class HookLog(Protocol):
    """The list of one hook. Safe from several threads."""

    @property
    def name(self) -> str:
        """Which hook it is, for keys and people: ``github:github.com:app``."""
        ...

    def page(self, cursor: str) -> Page:
        """A page. Raises :class:`pipeline.providers.calls.Failed`."""
        ...

    def redeliver(self, attempt: int) -> Asked:
        """Have the delivery of an attempt sent again. Does not raise for what the provider does."""
        ...

    def opens(self) -> float:
        """In how many seconds a further call may be made; 0 is now."""
        ...
