"""Dead letters of the worker: the one builder's letters, as records to publish."""

from __future__ import annotations

import time

from pipeline.ledger import Output
from topics import dead_letters
from topics.catalogue import DEAD_LETTERS
from topics.dead_letters import SourceRecord
from topics.models import Unreadable


def dead_letter(stage: str, record: SourceRecord, why: Unreadable) -> Output:
    """The dead letter of a consumed record. A replay writes the same letter at a later time."""
    letter = dead_letters.dead_letter(stage, record, why, int(time.time() * 1000))
    return Output(DEAD_LETTERS, None, letter.id.encode(), dead_letters.letter_bytes(letter))
