"""The retained log folded again, and compared with what is served. Pure.

A partition of ``runners.jobs`` goes through a ledger of its own, under the rules of the worker.
What comes out is compared with what the partition's job states and windows say: law L1 on data that
really came. Where the log is whole, each state has the same bytes; where its beginning has been
removed, that is so of what began later, and of the rest what the log tells must be contained in
what is served (:func:`judge_state`).

The worker goes on meanwhile. What it has committed is what it vouches for: up to there the log is
folded before anything is judged. What differs then may be ahead, so it is compared again with
each later record (:meth:`Refold.go_on`), until it is equal or the log ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from msgspec import DecodeError, Struct, structs
from msgspec.json import Decoder
from msgspec.json import decode as parsed

from pipeline.fold_spec import FoldSpec
from pipeline.jobs import FleetNames, Job, decode, encode, join, view
from pipeline.ledger import FACT_AHEAD_MS, OTHER_FLEET, Ledger, Retention
from pipeline.windows import SIZES_S, STRANDED, Pane, Sketch, pane_start, start_of
from topics.catalogue import JOB_STATES, WINDOWS
from topics.envelope import LATEST_MS
from topics.models import JobFact, Unreadable
from topics.reading import read
from topics.tables import JOBS_TABLE, PANE_S, WINDOWS_TABLE

STATES: Final = "job states"
WINDOWED: Final = "windows"

#: Records that are folded together, as a worker's batches are: each flush has its price.
_BATCH: Final = 1_000


@dataclass(frozen=True, slots=True)
class Served:
    """The latest value of each key of one partition; a key that was deleted is absent.

    Attributes:
        states: of ``runners.job-states``.
        windows: of ``runners.windows``.
        windows_since: what was last said of a window before this (ms) may have been removed by
            the topic's retention.
    """

    states: Mapping[bytes, bytes]
    windows: Mapping[bytes, bytes]
    windows_since: int = 0


@dataclass(slots=True)
class Tally:
    """How many were compared.

    Attributes:
        folded: that the log gives.
        served: that are served.
        different: without an explanation.
        in_part: of which the log tells only a part, or no longer anything.
        moved: that were ahead of what is committed, and are as a later record makes them.
    """

    folded: int = 0
    served: int = 0
    different: int = 0
    in_part: int = 0
    moved: int = 0

    def add(self, other: Tally) -> None:
        """Add those of another partition."""
        self.folded += other.folded
        self.served += other.served
        self.different += other.different
        self.in_part += other.in_part
        self.moved += other.moved


@dataclass(frozen=True, slots=True)
class Difference:
    """One field of one key that is served otherwise than the log says. ``None``: nothing there.

    ``field`` is a path such as ``timings.queue.ms``; empty for a key that one side lacks.
    """

    what: str
    partition: int
    key: str
    field: str
    folded: Any
    served: Any


@dataclass(slots=True)
class Result:
    """What came of a partition. ``differences`` are the first of them, by key and field."""

    tallies: dict[str, Tally]
    differences: list[Difference] = field(default_factory=list)
    #: Records of the log, and those of them that nobody can read.
    records: int = 0
    unreadable: int = 0


class Verdict(Enum):
    """How what is served of a key stands to what the log says of it."""

    EQUAL = "equal"
    #: As far as the log can tell.
    IN_PART = "in part"
    DIFFERENT = "different"


def judge_state(
    folded: bytes | None,
    served: bytes | None,
    *,
    told_from: int,
    fleets: FleetNames,
    forgotten_before: int,
) -> Verdict:
    """Compare a job's state with what the log gives. None: there is no such job.

    Of a job that was first heard of at ``told_from`` (ms) or later the log tells everything, so the
    bytes are equal. Of any other its knowledge must add nothing to what is served, and what is
    derived there must follow from its facts. A job with anything in it from before
    ``forgotten_before`` (ms) may have been forgotten, and have begun again.
    """
    if folded == served:
        return Verdict.EQUAL
    try:
        mine = None if folded is None else decode(folded)
        theirs = None if served is None else decode(served)
    except DecodeError:
        return Verdict.DIFFERENT
    if all(job.first_seen >= told_from for job in (mine, theirs) if job is not None):
        return Verdict.DIFFERENT
    if theirs is not None and encode(theirs, view(theirs, fleets)) != served:
        return Verdict.DIFFERENT
    if mine is None or (theirs is not None and join(theirs, mine) == theirs):
        return Verdict.IN_PART
    return Verdict.IN_PART if _oldest(mine) < forgotten_before else Verdict.DIFFERENT


def _oldest(job: Job) -> int:
    """The earliest time in it."""
    times = [at for clocks in job.times.values() for at in clocks.values()]
    return min(job.first_seen, job.last_seen, *times)


class _Said(Struct):
    """What is compared of a family in a window's record; ``max_ms`` follows from the bins."""

    count: int = 0
    sum_ms: int = 0
    zeros: int = 0
    bins: dict[int, int] = {}


class _Window(Struct):
    """What is compared of a window's record, and when it was said."""

    received_at: int
    families: dict[str, _Said] = {}
    conclusions: dict[str, int] = {}
    stranded: dict[str, _Said] = {}


_window: Final = Decoder(_Window)


def cells(records: Iterable[bytes]) -> dict[str, Any]:
    """What lies in windows together: counts, sums and bins by family, jobs by conclusion. Empty
    cells are nothing. Raises msgspec.DecodeError on foreign bytes."""
    together = Pane(families={}, conclusions={})
    for record in records:
        said = _window.decode(record)
        together.merge(
            Pane(
                families={
                    family: Sketch(each.count, each.sum_ms, each.zeros, each.bins)
                    for family, each in (
                        *said.families.items(),
                        *((f"{STRANDED}{kind}", each) for kind, each in said.stranded.items()),
                    )
                },
                conclusions=said.conclusions,
            )
        )
    pane = together.filled()
    return {
        "families": {family: structs.asdict(s) for family, s in pane.families.items()},
        "conclusions": dict(pane.conclusions),
    }


def fields(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a JSON value, each with its path."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from fields(inner, f"{path}.{name}" if path else str(name))
    else:
        yield path, value


@dataclass(frozen=True)
class Rules:
    """Under which the worker folds.

    Attributes:
        fold: the jobs' fold.
        fleets: how fleets are called.
        retention: how long jobs are kept.
        max_fleets: how many have windows of their own.
    """

    fold: FoldSpec[Ledger]
    fleets: FleetNames
    retention: Retention
    max_fleets: int

    @property
    def kept_ms(self) -> int:
        """For so long at least a job is kept after anything that is known of it."""
        return min(self.retention.completed_ms, self.retention.unfinished_ms)


class _Scratch:
    """What the worker's tables and topics of one partition would hold, made of the log alone."""

    def __init__(self, fold: FoldSpec[Ledger], partition: int, whole: bool, now: int) -> None:
        self.states: dict[bytes, bytes] = {}
        self.windows: dict[bytes, bytes] = {}
        self.records = self.unreadable = 0
        #: What happened, or was heard of, from here on cannot have been told before the log begins.
        self.told_from = 0 if whole else LATEST_MS
        #: Of a log that is not whole: the minutes that a job's facts name, by job.
        self.minutes: dict[str, set[int]] = {}
        self._whole = whole
        self._records = fold.records
        self._table: dict[bytes, bytes] = {}
        self._ledger = fold.new_ledger(
            partition, {JOBS_TABLE.name: self._table.get, WINDOWS_TABLE.name: lambda key: None}
        )
        self._ledger.now = now
        self._unflushed = 0

    @property
    def clock(self) -> int:
        """The partition's clock."""
        return self._ledger.clock

    def take(self, offset: int, value: bytes | None, written: int) -> None:
        """Fold the next record."""
        self.records += 1
        try:
            record = read(self._records, value)
        except Unreadable:
            self.unreadable += 1
            return
        if not self._whole and isinstance(record, JobFact):
            minutes = self.minutes.setdefault(record.key, set())
            minutes.add(pane_start(record.received_at))
            minutes.update(
                pane_start(at) for clocks in record.times.values() for at in clocks.values()
            )
            # Stranded time ends when a claim does.
            claim = record.claim
            ends = (claim.claimed_at, claim.minted_at, claim.released_at) if claim else ()
            minutes.update(pane_start(at) for at in ends if at is not None)
        self._ledger.apply(offset, record, written)
        if self.told_from == LATEST_MS and self._ledger.clock:
            # The clocks of producers are not ours: theirs may have been ahead.
            self.told_from = self._ledger.clock + FACT_AHEAD_MS
        self._unflushed += 1
        if self._unflushed >= _BATCH:
            self.flush()

    def flush(self) -> set[tuple[str, bytes]]:
        """Put into the tables what follows. Returns the keys that were said anew."""
        self._unflushed = 0
        effects = self._ledger.flush()
        for key, value in effects.tables.get(JOBS_TABLE.name, ()):
            _put(self._table, key, value)
        self._ledger.written()
        said = set()
        for output in effects.outputs:
            if output.topic == JOB_STATES:
                _put(self.states, output.key, output.value)
                said.add((STATES, output.key))
            elif output.topic == WINDOWS:
                _put(self.windows, output.key, output.value)
                said.add((WINDOWED, output.key))
        return said


class Refold:
    """One partition: its log is taken record by record, then what is served is judged.

    ``whole`` says whether the log still begins with its first record. ``now`` is the wall clock
    (ms), as the fold would read it.
    """

    def __init__(self, rules: Rules, partition: int, *, whole: bool, now: int) -> None:
        self.partition = partition
        self._rules = rules
        self._scratch = _Scratch(rules.fold, partition, whole, now)
        self._served = Served({}, {})
        #: Minutes of jobs of which the log tells only a part.
        self._cut: frozenset[int] = frozenset()
        #: Windows of hours in which fleets share ``other``, together: see :meth:`_together`.
        self._members: dict[bytes, set[bytes]] = {}
        self._crowded: frozenset[int] = frozenset()
        #: What differs: what the log gave of it when it was judged.
        self._open: dict[tuple[str, bytes], list[bytes]] = {}
        self._tallies = {STATES: Tally(), WINDOWED: Tally()}

    @property
    def records(self) -> int:
        """How many were taken."""
        return self._scratch.records

    def take(self, offset: int, value: bytes | None, written: int) -> None:
        """Fold the log's next record, written at ``written`` (ms), as the worker does."""
        self._scratch.take(offset, value, written)

    def judge(self, served: Served) -> None:
        """Compare all there is with what is served, now that the log is folded up to what the
        worker has committed."""
        scratch = self._scratch
        scratch.flush()
        self._served = served
        states, windows = self._tallies[STATES], self._tallies[WINDOWED]
        states.folded, states.served = len(scratch.states), len(served.states)
        windows.folded = _filled(scratch.windows, served.windows)
        windows.served = _filled(served.windows, scratch.windows)
        cut = set()
        for key in scratch.states.keys() | served.states.keys():
            verdict = self._state(key)
            if verdict is not Verdict.EQUAL:
                cut.add(key)
                self._note((STATES, key), verdict)
        self._cut = frozenset(
            minute
            for job, minutes in scratch.minutes.items()
            if job.encode() in cut or job.encode() not in served.states
            for minute in minutes
        )
        self._together(served)
        groups = {self._group(key) for key in scratch.windows.keys() | served.windows.keys()}
        for key in groups:
            self._note((WINDOWED, key), self._window(key))

    def _note(self, where: tuple[str, bytes], verdict: Verdict) -> None:
        if verdict is Verdict.IN_PART:
            self._tallies[where[0]].in_part += 1
        elif verdict is Verdict.DIFFERENT:
            self._open[where] = self._folded(where)

    @property
    def pending(self) -> bool:
        """Whether anything differs that a later record may explain."""
        return bool(self._open)

    def go_on(self, offset: int, value: bytes | None, written: int) -> None:
        """Fold one record that is not committed yet: what differs may be as it says."""
        self.take(offset, value, written)
        said = self._scratch.flush()
        for where in {(what, self._place(what, key)) for what, key in said} & self._open.keys():
            if self._verdict(where) is not Verdict.DIFFERENT:
                del self._open[where]
                self._tallies[where[0]].moved += 1

    def result(self, limit: int) -> Result:
        """What came of it, with the first ``limit`` differences."""
        found: list[Difference] = []
        for where in sorted(self._open):
            what, key = where
            # The clock has moved on, too: a job may have been forgotten meanwhile.
            if self._verdict(where) is not Verdict.DIFFERENT:
                self._tallies[what].moved += 1
                continue
            self._tallies[what].different += 1
            if len(found) < limit:
                found += self._named(what, key, self._open[where])
        scratch = self._scratch
        return Result(self._tallies, found[:limit], scratch.records, scratch.unreadable)

    def _place(self, what: str, key: bytes) -> bytes:
        return key if what == STATES else self._group(key)

    def _folded(self, where: tuple[str, bytes]) -> list[bytes]:
        what, key = where
        if what == WINDOWED:
            return _of(self._scratch.windows, self._members.get(key, (key,)))
        return _of(self._scratch.states, (key,))

    def _verdict(self, where: tuple[str, bytes]) -> Verdict:
        what, key = where
        return self._state(key) if what == STATES else self._window(key)

    def _state(self, key: bytes) -> Verdict:
        return judge_state(
            self._scratch.states.get(key),
            self._served.states.get(key),
            told_from=self._scratch.told_from,
            fleets=self._rules.fleets,
            forgotten_before=self._scratch.clock - self._rules.kept_ms,
        )

    def _window(self, key: bytes) -> Verdict:
        members = self._members.get(key, (key,))
        mine, theirs = _of(self._scratch.windows, members), _of(self._served.windows, members)
        if mine == theirs:
            return Verdict.EQUAL
        try:
            if cells(mine) == cells(theirs):
                return Verdict.EQUAL
            if not theirs and all(
                _window.decode(each).received_at < self._served.windows_since for each in mine
            ):
                return Verdict.IN_PART
        except DecodeError:
            return Verdict.DIFFERENT
        _, size_s, start = _parts(key)
        if start < self._scratch.told_from:
            return Verdict.IN_PART
        minutes = range(start, start + size_s * 1000, PANE_S * 1000)
        return Verdict.DIFFERENT if self._cut.isdisjoint(minutes) else Verdict.IN_PART

    def _together(self, served: Served) -> None:
        """Find the hours in which fleets share ``other``: which of them have windows of their own
        depends on what was folded together, what all of them add up to does not."""
        fleets: dict[int, set[bytes]] = {}
        keys = self._scratch.windows.keys() | served.windows.keys()
        for key in keys:
            fleet, size_s, start = _parts(key)
            if size_s == SIZES_S[-1]:
                fleets.setdefault(start, set()).add(fleet)
        other = {OTHER_FLEET.encode()}
        self._crowded = frozenset(
            start for start, named in fleets.items() if len(named - other) >= self._rules.max_fleets
        )
        for key in keys if self._crowded else ():
            group = self._group(key)
            if group != key:
                self._members.setdefault(group, set()).add(key)

    def _group(self, key: bytes) -> bytes:
        """The key of what a window is compared within: its own, or that of all fleets."""
        if not self._crowded:
            return key
        _, size_s, start = _parts(key)
        if start_of(start, SIZES_S[-1]) not in self._crowded:
            return key
        group = b"(all fleets)|%d|%d|%d" % (size_s, start, self.partition)
        if group in self._members:
            self._members[group].add(key)
        return group

    def _named(self, what: str, key: bytes, folded: list[bytes]) -> Iterator[Difference]:
        """A difference field by field."""
        if what == STATES:
            served = _of(self._served.states, (key,))
        else:
            served = _of(self._served.windows, self._members.get(key, (key,)))
        name = key.decode(errors="backslashreplace")
        if not folded or not served:
            said = [None if not each else _told(what, each) for each in (folded, served)]
            yield Difference(what, self.partition, name, "", *said)
            return
        mine, theirs = (dict(fields(_told(what, each))) for each in (folded, served))
        for path in sorted(mine.keys() | theirs.keys()):
            if mine.get(path) != theirs.get(path):
                yield Difference(what, self.partition, name, path, mine.get(path), theirs.get(path))


def _told(what: str, values: list[bytes]) -> Any:
    try:
        return cells(values) if what == WINDOWED else parsed(values[0])
    except DecodeError:
        return {"unreadable": values[0].decode(errors="backslashreplace")}


def _put(table: dict[bytes, bytes], key: bytes, value: bytes | None) -> None:
    if value is None:
        table.pop(key, None)
    else:
        table[key] = value


def _of(table: Mapping[bytes, bytes], keys: Iterable[bytes]) -> list[bytes]:
    return [table[key] for key in sorted(keys) if key in table]


def _filled(windows: Mapping[bytes, bytes], others: Mapping[bytes, bytes]) -> int:
    """How many there are; without those that only one side has and that are empty: what was put in
    and taken out again within one batch may or may not have been told."""
    alone = [value for key, value in windows.items() if key not in others]
    return len(windows) - [_told(WINDOWED, [value]) for value in alone].count(_EMPTY)


_EMPTY: Final = cells([])


def _parts(key: bytes) -> tuple[bytes, int, int]:
    """Fleet, size in seconds and start of the window with this key; 0 where it names none."""
    parts = key.rsplit(b"|", 3)
    try:
        return parts[0], int(parts[1]), int(parts[2])
    except (IndexError, ValueError):
        return key, 0, 0
