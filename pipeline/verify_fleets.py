"""The retained log of fleets folded again, and compared with the table of fleets. Pure.

Runners, hosts, proposals, commands, endings, what was withheld, switches: a row each. Budgets and
the breaker are counted from them. A fold that may not act decides nothing here: what was decided
stands in the log (law L11), so that the rows come out alike, byte for byte.

Where the log no longer has its beginning, a row that is older than it is compared as far as the
log tells. As with jobs (:mod:`pipeline.verify`) what differs may be ahead, and is compared again
with each later record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from msgspec import DecodeError
from msgspec.json import decode as parsed

from pipeline.fleet import FleetLedger
from pipeline.fleet.rows import parse_key
from pipeline.fleet.state import AHEAD_MS
from pipeline.fold_spec import FoldSpec
from pipeline.verify import Difference, Result, Tally, Verdict, fields
from topics.envelope import EARLIEST_MS, LATEST_MS
from topics.models import Unreadable
from topics.reading import read
from topics.tables import FLEETS_TABLE

ROWS: Final = "fleets"

#: Records that are folded together.
_BATCH: Final = 1_000
#: A runner's row is made of many records, each of the others of one.
_RUNNERS: Final = "runners"


class RefoldFleets:
    """One partition: its log is taken record by record, then the table is judged.

    ``whole`` says whether the log still begins with its first record. ``now`` is the wall clock
    (ms), as the fold would read it.
    """

    def __init__(
        self, fold: FoldSpec[FleetLedger], partition: int, *, whole: bool, now: int
    ) -> None:
        self.partition = partition
        self.records = self._unreadable = self._unflushed = 0
        self._adapter = fold.records
        self._rows: dict[bytes, bytes] = {}
        self._served: Mapping[bytes, bytes] = {}
        self._ledger = fold.new_ledger(partition, {FLEETS_TABLE.name: self._rows.get})
        self._ledger.now = now
        #: What was said after this the log tells.
        self._told_from = -1 if whole else LATEST_MS
        #: What differs: what the log gave of it when it was judged.
        self._open: dict[bytes, bytes | None] = {}
        self._tally = Tally()

    def take(self, offset: int, value: bytes | None, written: int) -> None:
        """Fold the log's next record, written at ``written`` (ms), as the worker does."""
        self.records += 1
        try:
            record = read(self._adapter, value)
        except Unreadable:
            self._unreadable += 1
            return
        self._ledger.apply(offset, record, written)
        if self._told_from == LATEST_MS and self._ledger.clock:
            # Others' clocks may be ahead: what was said before the log begins has an earlier time.
            self._told_from = self._ledger.clock + AHEAD_MS
        self._unflushed += 1
        if self._unflushed >= _BATCH:
            self._flush()

    def judge(self, served: Mapping[bytes, bytes]) -> None:
        """Compare all there is with the table's rows, now that the log is folded up to what the
        worker has committed."""
        self._flush()
        self._served = {key: value for key, value in served.items() if _is_row(key)}
        self._tally.folded, self._tally.served = len(self._rows), len(self._served)
        for key in self._rows.keys() | self._served.keys():
            verdict = self._verdict(key)
            if verdict is Verdict.IN_PART:
                self._tally.in_part += 1
            elif verdict is Verdict.DIFFERENT:
                self._open[key] = self._rows.get(key)

    @property
    def pending(self) -> bool:
        """Whether anything differs that a later record may explain."""
        return bool(self._open)

    def go_on(self, offset: int, value: bytes | None, written: int) -> None:
        """Fold one record that is not committed yet: what differs may be as it says."""
        self.take(offset, value, written)
        for key in self._flush() & self._open.keys():
            if self._verdict(key) is not Verdict.DIFFERENT:
                del self._open[key]
                self._tally.moved += 1

    def result(self, limit: int) -> Result:
        """What came of it, with the first ``limit`` differences."""
        self._tally.different = len(self._open)
        found: list[Difference] = []
        for key in sorted(self._open):
            if len(found) >= limit:
                break
            found += self._named(key)
        return Result({ROWS: self._tally}, found[:limit], self.records, self._unreadable)

    def _flush(self) -> set[bytes]:
        """Put into the rows what follows. Returns the keys that were written."""
        self._unflushed = 0
        effects = self._ledger.flush()
        self._ledger.written()
        written = set()
        for key, value in effects.tables.get(FLEETS_TABLE.name, ()):
            if not _is_row(key):
                continue
            written.add(key)
            if value is None:
                self._rows.pop(key, None)
            else:
                self._rows[key] = value
        return written

    def _verdict(self, key: bytes) -> Verdict:
        mine, theirs = self._rows.get(key), self._served.get(key)
        if mine == theirs:
            return Verdict.EQUAL
        if self._told_from < 0:
            return Verdict.DIFFERENT
        try:
            told = [sorted(_times(parsed(each))) for each in (mine, theirs) if each is not None]
        except DecodeError:
            return Verdict.DIFFERENT
        if all(times and times[0] > self._told_from for times in told):
            return Verdict.DIFFERENT
        # The log tells later things of a runner than are served.
        if _part(key) == _RUNNERS and mine and theirs and told[0][-1:] > told[1][-1:]:
            return Verdict.DIFFERENT
        return Verdict.IN_PART

    def _named(self, key: bytes) -> Iterator[Difference]:
        """A difference field by field."""
        mine, theirs = (_told(each) for each in (self._open[key], self._served.get(key)))
        name = key.decode(errors="backslashreplace")
        if mine is None or theirs is None:
            yield Difference(ROWS, self.partition, name, "", mine, theirs)
            return
        one, other = dict(fields(mine)), dict(fields(theirs))
        for path in sorted(one.keys() | other.keys()):
            if one.get(path) != other.get(path):
                yield Difference(ROWS, self.partition, name, path, one.get(path), other.get(path))


def _part(key: bytes) -> str | None:
    """What the row is about; None for the partition's clock, which every tick moves."""
    try:
        where = parse_key(key)
    except DecodeError:
        return ""
    return None if where is None else where[0]


def _is_row(key: bytes) -> bool:
    return _part(key) is not None


def _told(value: bytes | None) -> Any:
    if value is None:
        return None
    try:
        return parsed(value)
    except DecodeError:
        return {"unreadable": value.decode(errors="backslashreplace")}


def _times(value: Any) -> Iterator[int]:
    """When what the row is made of was said. A record's is its own; all else in it came with it."""
    if isinstance(value, Mapping) and isinstance(value.get("occurred_at"), int):
        yield value["occurred_at"]
        return
    for _, leaf in fields(value):
        for each in leaf if isinstance(leaf, list) else [leaf]:
            if isinstance(each, Mapping):
                yield from _times(each)
            elif isinstance(each, int) and not isinstance(each, bool) and each >= EARLIEST_MS:
                yield each
