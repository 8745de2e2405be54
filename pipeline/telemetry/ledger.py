"""Everything one partition of ``runners.telemetry`` knows. Pure.

It decides nothing and tells nobody anything: what is known is in its table, what is counted in the
notes, and how things are now in :meth:`TelemetryLedger.levels`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec
from msgspec.json import Decoder, Encoder

from pipeline import metrics
from pipeline.clock import PartitionClock
from pipeline.effects import Effects, Note
from pipeline.metrics import Level
from pipeline.telemetry.panes import PaneRow, Panes
from pipeline.telemetry.registry import EVENTS, FAMILIES, LATE_EVENTS
from pipeline.telemetry.subject import KEPT_MS, LATE_MS, MINUTE_MS, Subject
from topics.events import Event, family_of
from topics.models import Tick
from topics.recovery import Depth
from topics.tables import TELEMETRY_TABLE

#: Table key of the partition's clock. No row's key begins like it.
CLOCK_KEY: Final = "~clock"
#: The part of the rows of panes.
PANES: Final = "~panes"

_encoder: Final = Encoder(order="deterministic")
_keys: Final = Decoder(tuple[str, str, str, str, str])
_panes: Final = Decoder(PaneRow)
_decoders: Final[dict[tuple[str, str], Decoder[Any]]] = {
    (family.name, part): Decoder(struct)
    for family in FAMILIES.values()
    for part, struct in family.parts.items()
}

#: Family, fleet, name.
Key = tuple[str, str, str]


def clock_key(partition: int) -> bytes:
    """Table key under which a partition keeps its clock."""
    return f"{CLOCK_KEY}:{partition}".encode()


class TelemetryLedger:
    """One partition's subjects and its clock. Not thread-safe; owned by the fold."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.clock = PartitionClock()
        #: As the fold has it; this ledger does not act, so it does not matter whose ticks it meets.
        self.me = ""
        self.subjects: dict[Key, Subject] = {}
        self._panes: dict[Key, Panes] = {}
        self._minute = 0
        #: The panes that count the event at hand; None: nothing of it counts.
        self._counting: Panes | None = None
        #: Whether things are being forgotten: what is given up then is no event's.
        self._forgetting = False
        # The batch under way.
        self._observed: list[Note[Any]] = []
        self._counts: Counter[tuple[metrics.Counter[Any], tuple[str, ...]]] = Counter()
        self._dirty: dict[tuple[Key, str, str], None] = {}
        self._dirty_clock = False

    # -- PartitionLedger -----------------------------------------------------------------------

    @property
    def now(self) -> int | None:
        """The wall clock in ms, as whoever drives the ledger last read it; None: nobody knows."""
        return self.clock.now

    @now.setter
    def now(self, at: int | None) -> None:
        self.clock.now = at

    def load(self, tables: Mapping[str, Iterable[tuple[bytes, bytes]]]) -> None:
        """See PartitionLedger."""
        for key, value in tables[TELEMETRY_TABLE.name]:
            if key.startswith(CLOCK_KEY.encode()):
                self.clock.at = int(msgspec.json.decode(value, type=dict[str, int])["at"])
                continue
            family, fleet, name, part, thing = _keys.decode(key)
            where = (family, fleet, name)
            subject = self._subject(where)
            if part == PANES:
                start, _, number = thing.partition(".")
                panes = self._panes.setdefault(where, Panes())
                panes.load(int(start), int(number), _panes.decode(value))
            elif (family, part) in _decoders:
                subject.parts.setdefault(part, {})[thing] = _decoders[family, part].decode(value)
        self._minute = self.clock.at // MINUTE_MS
        self._heal()

    def apply(self, offset: int, record: Any, written: int | None = None) -> None:
        """Take the partition's next record, which was written at ``written`` (ms)."""
        if isinstance(record, Tick):
            self._tick(record, written)
        elif isinstance(record, Depth):
            self._on_depth(record, written)
        elif self.clock.is_ahead(record.occurred_at, written):
            self._count(metrics.FUTURE_TIMES, ())
        else:
            self._count(EVENTS, (family_of(record),))
            self._on_event(record)

    def flush(self) -> Effects:
        """See PartitionLedger."""
        effects = Effects()
        effects.notes += (
            Note(what, labels, float(n)) for (what, labels), n in self._counts.items()
        )
        effects.notes += self._observed
        self._observed.clear()
        self._counts.clear()
        writes = effects.writes(TELEMETRY_TABLE)
        # Panes first: what is known may decide what an event adds, so an event that is durable in
        # what is known must not be new to its pane (see ``subject``).
        for where, part, name in sorted(self._dirty, key=lambda each: each[1] != PANES):
            value = self._row(where, part, name)
            row = _encoder.encode((*where, part, name))
            writes.append((row, None if value is None else _encoder.encode(value)))
        if self._dirty_clock:
            writes.append((clock_key(self.partition), _encoder.encode({"at": self.clock.at})))
        self._dirty.clear()
        self._dirty_clock = False
        return effects

    def written(self) -> None:
        """See PartitionLedger: nothing here is read from the table again."""

    # -- what is known -------------------------------------------------------------------------

    def levels(self) -> Iterator[Level]:
        """Every gauge of every subject, at the clock's time."""
        clock = self.clock.at
        for subject in list(self.subjects.values()):
            # At once: whoever asks may go on later, when things have changed.
            yield from list(FAMILIES[subject.family].levels(subject, clock))

    def view(self, where: Key) -> dict[str, Any] | None:
        """What a person sees of a subject: ``fleet``, ``name``, what its family shows, and under
        ``counts`` what was counted within the last quarter of an hour. None: nothing is known.
        """
        subject = self.subjects.get(where)
        if subject is None:
            return None
        return {
            "fleet": subject.fleet,
            "name": subject.name,
            **FAMILIES[subject.family].view(subject, self.clock.at),
            "counts": dict(sorted(self.sums(where).items())),
        }

    def sums(self, where: Key, since: int = 0) -> Counter[str]:
        """What was counted of a subject since the pane that begins at ``since`` (ms)."""
        panes = self._panes.get(where)
        return panes.sums(since) if panes is not None else Counter()

    # -- what is said --------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        where = (family_of(event), event.fleet, event.subject)
        age = self.clock.at - event.occurred_at
        subject = self._subject(where)
        subject.too_old = age > KEPT_MS
        place = None
        if age > LATE_MS:
            self._count(LATE_EVENTS, (where[0],))
        else:
            panes = self._panes.setdefault(where, Panes())
            place = panes.begin(event.occurred_at, event.statement)
            if place is None:
                self._count(metrics.DUPLICATE_FACTS, ())
            else:
                self._counting = panes
                self._dirty[where, PANES, f"{place[0]}.{place[1]}"] = None
        # What counts no more is taken in all the same: that it was counted may have become durable
        # before what it says.
        FAMILIES[subject.family].apply(subject, event)
        if self._counting is not None:
            self._counting.end()
            self._counting = None
        if not self._is_known(where):
            del self.subjects[where]

    def _on_depth(self, depth: Depth, written: int | None) -> None:
        """How many jobs of a fleet wait, for those who know its runners."""
        subject = self.subjects.get(("pools", depth.key, ""))
        if subject is not None and not self.clock.is_ahead(depth.occurred_at, written):
            subject.too_old = False
            FAMILIES["pools"].apply(subject, depth)

    # -- the clock -----------------------------------------------------------------------------

    def _tick(self, tick: Tick, written: int | None) -> None:
        self._heal()
        before = self.clock.at
        refused = self.clock.take(tick, written)
        if refused is not None:
            self._count(metrics.REFUSED_TICKS, (refused,))
            return
        self._dirty_clock |= self.clock.at > before
        if self._minute != self.clock.at // MINUTE_MS:
            self._minute = self.clock.at // MINUTE_MS
            self._forget()

    def _heal(self) -> None:
        if self.clock.heal():
            self._dirty_clock = True
            self._count(metrics.HEALED_CLOCKS, ())

    def _forget(self) -> None:
        clock = self.clock.at
        for where, subject in list(self.subjects.items()):
            self._forgetting = True
            FAMILIES[subject.family].tick(subject, clock)
            self._forgetting = False
            panes = self._panes.get(where)
            if panes is not None:
                for start, number in panes.forget(clock):
                    self._dirty[where, PANES, f"{start}.{number}"] = None
                if not panes:
                    del self._panes[where]
            if not self._is_known(where):
                del self.subjects[where]

    # -- things --------------------------------------------------------------------------------

    def _subject(self, where: Key) -> Subject:
        subject = self.subjects.get(where)
        if subject is None:
            family, fleet, name = where
            subject = self.subjects[where] = Subject(
                FAMILIES[family].name, fleet, name, self._changed, self._noted
            )
        return subject

    def _is_known(self, where: Key) -> bool:
        return where in self._panes or any(self.subjects[where].parts.values())

    def _row(self, where: Key, part: str, name: str) -> Any:
        """A row as it is now; None when it was dropped."""
        if part == PANES:
            panes = self._panes.get(where)
            start, _, number = name.partition(".")
            return panes.row(int(start), int(number)) if panes is not None else None
        subject = self.subjects.get(where)
        return subject.get(part, name) if subject is not None else None

    def _changed(self, subject: Subject, part: str, name: str) -> None:
        if (subject.family, part) in _decoders:
            self._dirty[(subject.family, subject.fleet, subject.name), part, name] = None

    def _noted(self, subject: Subject, note: Note[Any]) -> None:
        if not self._forgetting and (self._counting is None or not self._counting.add(note)):
            return
        if isinstance(note.metric, metrics.Counter):
            self._counts[note.metric, note.labels] += int(note.value)
        else:
            self._observed.append(note)

    def _count(self, metric: metrics.Counter[Any], labels: tuple[str, ...]) -> None:
        self._counts[metric, labels] += 1
