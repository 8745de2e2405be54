"""From marks (one per transaction, see ``observed.py`` and ``floor.py``) to rates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Mark = dict[str, Any]


@dataclass(frozen=True)
class Rate:
    """How fast a stage went and what it cost, from its first batch on."""

    records: int
    seconds: float
    per_second: float
    #: Processor time of the whole process per record, in microseconds.
    cpu_us: float
    records_per_batch: float
    #: Records written to Kafka per record read.
    written_per_record: float
    #: Share of the time that went into decoding and folding; None for the floor.
    fold_share: float | None

    def data(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)


def read(path: Path) -> list[Mark]:
    """The marks written so far; a line that is being written is left out."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def of(marks: Sequence[Mark], stage: str) -> list[Mark]:
    """The marks of one stage."""
    return [mark for mark in marks if mark["what"] == stage]


def rate(marks: Sequence[Mark], stage: str, records: int) -> Rate:
    """The rate of a stage over its first ``records`` records.

    It runs from the end of the first batch to the end of the one that completes the number, so
    that neither the start of the process nor the wait for the first fetch is counted; when there
    are only one or two batches, from the beginning of the first.
    """
    chosen: list[Mark] = []
    taken = 0
    for mark in of(marks, stage):
        chosen.append(mark)
        taken += mark["records"]
        if taken >= records:
            break
    if not chosen:
        raise ValueError(f"no marks of {stage}")
    first, last = chosen[0], chosen[-1]
    if len(chosen) > 2:
        timed = chosen[1:]
        seconds = last["t"] - first["t"]
        cpu = last["cpu"] - first["cpu"]
    else:
        timed = chosen
        seconds = last["t"] - first["t"] + first["seconds"]
        cpu = seconds
    number = sum(mark["records"] for mark in timed)
    folding = sum(mark["fold_seconds"] for mark in timed)
    wrote = sum(sum(mark["writes"].values()) for mark in timed)
    return Rate(
        records=number,
        seconds=seconds,
        per_second=number / seconds,
        cpu_us=cpu / number * 1e6,
        records_per_batch=number / len(timed),
        written_per_record=wrote / number,
        fold_share=folding / seconds if folding else None,
    )
