"""Fingerprints of the Faust internals that pipeline/faust_safe overrides or relies on."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from typing import Any

from faust.stores.memory import Store as MemoryStore
from faust.streams import Stream
from faust.tables.base import Collection
from faust.tables.recovery import Recovery
from faust.transport.consumer import Consumer

OVERRIDDEN: dict[str, Callable[..., Any]] = {
    "Consumer.getmany": Consumer.getmany,
    "Consumer._wait_next_records": Consumer._wait_next_records,
    "Consumer._drain_messages": Consumer._drain_messages,
    "Consumer.ack": Consumer.ack,
    "Consumer.track_message": Consumer.track_message,
    "Consumer._new_offset": Consumer._new_offset,
    "Consumer._add_gap": Consumer._add_gap,
    "Consumer.resume_partitions": Consumer.resume_partitions,
    "Consumer.resume_flow": Consumer.resume_flow,
    "Consumer.wait_empty": Consumer.wait_empty,
    "Recovery.on_recovery_completed": Recovery.on_recovery_completed,
    "Recovery._resume_streams": Recovery._resume_streams,
    "Collection._should_expire_keys": Collection._should_expire_keys,
    "Collection._maybe_set_key_ttl": Collection._maybe_set_key_ttl,
    "Collection._maybe_del_key_ttl": Collection._maybe_del_key_ttl,
    "MemoryStore.on_recovery_completed": MemoryStore.on_recovery_completed,
    "MemoryStore.apply_changelog_batch": MemoryStore.apply_changelog_batch,
    "Stream.noack": Stream.noack,
    "Stream.ack": Stream.ack,
}


def fingerprints() -> dict[str, str]:
    """Name of each internal -> digest of its source."""
    return {
        name: hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]
        for name, function in OVERRIDDEN.items()
    }
