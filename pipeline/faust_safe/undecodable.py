"""Record batches that aiokafka cannot decode are handed on as records that say so.

aiokafka raises out of the fetch when a batch has a codec it does not know, a wrong checksum, or a
record that does not parse, and raises again at every start: one bad batch ends the worker for good.
It also takes a header name that is not UTF-8 for such a fault, which any producer can send.

:func:`install` makes its consumers read a batch in three tries: aiokafka's own decoder; the same
in Python, with header names decoded leniently; else one record in place of the batch, whose value
is :class:`Undecodable` with the batch's own bytes. Agents bury that like any record they cannot
understand.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy, _DefaultRecordPy
from aiokafka.record.memory_records import MemoryRecords, _MemoryRecordsPy


class Undecodable(bytes):
    """The bytes of a batch nobody can decode, in place of a record's value."""

    #: What was wrong, and which offsets the batch spans.
    error: str = ""


class KeptRecords:
    """aiokafka's MemoryRecords, with the bytes at hand for a second look."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._inner = MemoryRecords(raw)
        self._taken = -1

    def size_in_bytes(self) -> int:
        """Of everything fetched."""
        return int(self._inner.size_in_bytes())

    def has_next(self) -> bool:
        """Whether a complete batch is left."""
        return bool(self._inner.has_next())

    def next_batch(self) -> Any:
        """The next batch; ``None`` after the last."""
        batch = self._inner.next_batch()
        if batch is None:
            return None
        self._taken += 1
        return KeptBatch(batch, self._raw, self._taken)


class KeptBatch:
    """A batch as aiokafka's fetcher looks at it; iterating it never raises."""

    def __init__(self, batch: Any, raw: bytes, number: int) -> None:
        self._batch = batch
        self._raw = raw
        self._number = number
        self._intact = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def validate_crc(self) -> bool:
        """True: a wrong checksum is said when the records are asked for."""
        self._intact = bool(self._batch.validate_crc())
        return True

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        if self._intact:
            try:
                return iter(list(self._batch))
            except Exception as error:
                why = error
        else:
            why = ValueError("its checksum is wrong")
        slices = _MemoryRecordsPy(self._raw)
        for _ in range(self._number):
            slices._cache_next()
        raw = bytes(slices._next_slice or b"")
        if self._intact:
            try:
                return iter(list(_LenientBatch(raw)))
            except Exception as error:
                why = error
        return iter([self._in_place_of(raw, why)])

    def _in_place_of(self, raw: bytes, why: Exception) -> Any:
        batch = self._batch
        value = Undecodable(raw)
        value.error = (
            f"the record batch at offsets {batch.base_offset} to {batch.next_offset - 1} cannot "
            f"be decoded: {type(why).__name__}: {why}"
        )
        # At its last offset: nothing before it will be asked for again.
        return _DefaultRecordPy(
            batch.next_offset - 1, batch.first_timestamp, batch.timestamp_type, None, value, []
        )


class _LenientSlice(bytearray):
    def decode(self, encoding: str = "utf-8", errors: str = "backslashreplace") -> str:
        return super().decode(encoding, errors)


class _LenientBuffer(bytearray):
    """Its slices decode as text whatever they hold."""

    def __getitem__(self, where: Any) -> Any:
        found = super().__getitem__(where)
        return _LenientSlice(found) if isinstance(where, slice) else found


class _LenientBatch(_DefaultRecordBatchPy):
    _buffer: bytearray

    def _maybe_uncompress(self) -> None:
        super()._maybe_uncompress()
        self._buffer = _LenientBuffer(self._buffer)


def install() -> None:
    """Make aiokafka's consumers use it. May be called twice."""
    fetcher.MemoryRecords = KeptRecords
