"""One subject of telemetry: all that is known under one key, and how a family is declared. Pure.

A *subject* is a fleet's dispatcher, its pools, a runner, a scheduler's run, a reconciler. What is
known of it are *things*: small frozen structs by part and name, each a row of the table. A family
says what an event changes (:attr:`Family.apply`) and what a subject looks like now
(:attr:`Family.levels`, :attr:`Family.view`).

Two rules make order and duplicates not matter (L1). A thing is joined, never assigned: the latest
statement wins by time and then by id (:func:`latest`), the earliest time of a milestone is kept,
what is open is told from what is over by keyed state. And what an event adds to counters follows
from the event alone, and is added once: the ledger knows the statements of the last quarter of an
hour, and what comes later than that changes things but adds to nothing. It may also be by how much
the event makes something larger that is told from all that is known and never shrinks, such as how
often a violation opened: then only the sum over all events does not depend on order, and it is the
number told from all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from msgspec import Struct

from pipeline import metrics
from pipeline.effects import Note
from pipeline.metrics import Level
from topics.events import FamilyName

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS
#: An event counts for so long after it happened; what comes later is counted as late.
LATE_MS: Final = 15 * MINUTE_MS
#: What is over is remembered for so long, and nothing older than this makes anything anew: a late
#: word of something that is over and forgotten must not open it again.
KEPT_MS: Final = 6 * HOUR_MS
#: A level that nobody has confirmed for so long is not told any more: its source is silent.
FRESH_MS: Final = 5 * MINUTE_MS


class Dated(Protocol):
    """A statement with its time in ms and its id."""

    @property
    def at(self) -> int: ...
    @property
    def id(self) -> str: ...


D = TypeVar("D", bound=Dated)


def latest(one: D | None, other: D) -> D:
    """The later statement, by time and then by id."""
    return other if one is None or (other.at, other.id) > (one.at, one.id) else one


def earliest(*times: int | None) -> int | None:
    """The earliest of those that are known."""
    return min((at for at in times if at is not None), default=None)


class Subject:
    """All that is known of one subject. Families read and change it; the ledger owns it."""

    __slots__ = ("_changed", "_noted", "family", "fleet", "name", "parts", "too_old")

    def __init__(
        self,
        family: FamilyName,
        fleet: str,
        name: str,
        changed: Callable[[Subject, str, str], None] = lambda subject, part, name: None,
        noted: Callable[[Subject, Note[Any]], None] = lambda subject, note: None,
    ) -> None:
        """``changed`` is told what must be written, ``noted`` what is to be counted."""
        self.family = family
        self.fleet = fleet
        self.name = name
        self.parts: dict[str, dict[str, Any]] = {}
        #: Whether the event at hand is too old to make anything anew.
        self.too_old = False
        self._changed = changed
        self._noted = noted

    def get(self, part: str, name: str = "") -> Any:
        """A thing; None when nothing is known of it."""
        return self.parts.get(part, {}).get(name)

    def all(self, part: str) -> Mapping[str, Any]:
        """All things of a part by name."""
        return self.parts.get(part, {})

    def put(self, part: str, thing: Struct, name: str = "") -> bool:
        """Keep a thing as it is after a join; whether that is news.

        Nothing is made anew by an event that is too old.
        """
        known = self.parts.setdefault(part, {})
        before = known.get(name)
        if before == thing or (before is None and self.too_old):
            return False
        known[name] = thing
        self._changed(self, part, name)
        return True

    def drop(self, part: str, name: str = "") -> None:
        """Forget a thing."""
        if self.parts.get(part, {}).pop(name, None) is not None:
            self._changed(self, part, name)

    def note(
        self,
        metric: metrics.Counter[Any] | metrics.Histogram[Any],
        *labels: str,
        value: float = 1,
        counts: Mapping[float, int] | None = None,
    ) -> None:
        """Count something that the event at hand says; of a late one nothing is counted. At a tick:
        what is given up. ``labels`` are those behind the fleet, which is this one where the metric
        has it. ``counts`` as of a :class:`~pipeline.effects.Note`."""
        where = (self.fleet, *labels) if metric.by_fleet else labels
        self._noted(self, Note(metric, where, value, counts))


def _nothing(subject: Subject, clock: int) -> None:
    """Nothing is done at a tick."""


@dataclass(frozen=True)
class Family:
    """One family of telemetry, declared.

    Attributes:
        name: as in :data:`topics.events.FAMILIES`.
        parts: the struct of the things of each part that the table keeps. What is told again at
            every tick may stand in a part that is not named here.
        metrics: all it counts and shows, in the order of ``/metrics``.
        apply: takes an event of the subject into what is known of it.
        tick: at the clock's ticks, once a minute: drops what is outdated. Must follow from what is
            known and the clock alone.
        levels: what the subject's gauges are at the clock's time. None for what nobody knows.
        view: what a person sees of the subject, as JSON.
    """

    name: FamilyName
    parts: Mapping[str, type[Struct]]
    metrics: tuple[metrics.Metric[Any], ...]
    apply: Callable[[Subject, Any], None]
    levels: Callable[[Subject, int], Iterable[Level]]
    view: Callable[[Subject, int], dict[str, Any]]
    tick: Callable[[Subject, int], None] = _nothing


def known(
    levels: Iterable[tuple[metrics.Gauge[Any], tuple[str, ...], float | None]],
) -> Iterator[Level]:
    """Those levels whose value is known."""
    for gauge, labels, value in levels:
        if value is not None:
            yield gauge, labels, value
