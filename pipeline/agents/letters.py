"""Dead letters of the worker: the one builder's letters, as records to publish."""

from __future__ import annotations

import time
from typing import Any

from pipeline import metrics
from pipeline.effects import Note, Output
from pipeline.faust_safe.undecodable import Undecodable
from topics import dead_letters
from topics.catalogue import DEAD_LETTERS
from topics.dead_letters import SourceRecord
from topics.models import Reason, Unreadable


def bury(stage: str, record: SourceRecord, error: Exception) -> tuple[Output, Note[Any]]:
    """The dead letter of a record that ``stage`` cannot handle, and what to count.

    A replay writes the same letter at a later time.
    """
    if isinstance(record.value, Undecodable):
        why = Unreadable(Reason.UNDECODABLE, record.value.error)
    elif isinstance(error, Unreadable):
        why = error
    else:
        why = Unreadable(Reason.UNEXPECTED, f"{type(error).__name__}: {error}")
    letter = dead_letters.dead_letter(stage, record, why, int(time.time() * 1000))
    output = Output(DEAD_LETTERS, None, letter.id.encode(), dead_letters.letter_bytes(letter))
    return output, Note(metrics.DEAD_LETTERS, (stage, why.reason.value))
