"""A consumer as far as what pipeline/faust_safe overrides looks at it, and what it fetches."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

from faust.types.tuples import TP, ConsumerMessage

from pipeline.faust_safe import Batch
from pipeline.faust_safe.transport import SafeConsumer

SOURCE = TP("runners.jobs", 0)
CHANGELOG = TP("runnerstream-jobs-changelog", 0)


class Monitor:
    def track_tp_end_offset(self, tp: TP, offset: int) -> None:
        pass


def consumer(*, rebalancing: bool = False, generation: int = 1) -> Any:
    """A SafeConsumer as far as the overridden methods look at it."""
    made: Any = SafeConsumer.__new__(SafeConsumer)
    made.app = SimpleNamespace(
        rebalancing=rebalancing,
        in_recovery=False,
        consumer_generation_id=generation,
        tables=SimpleNamespace(
            changelog_topics={CHANGELOG.topic}, recovery=SimpleNamespace(blank=frozenset())
        ),
        flow_control=SimpleNamespace(is_active=lambda: True),
        producer=SimpleNamespace(buffer=SimpleNamespace(size=0, max_messages=100)),
        monitor=Monitor(),
        client_only=False,
        topics=SimpleNamespace(acks_enabled_for=lambda topic: True),
    )
    made._active_partitions = set()
    made._paused_partitions = {SOURCE, CHANGELOG}
    made._buffered_partitions = set()
    made._acked = {}
    made._unacked_messages = set()
    made._waiting_for_ack = None
    made._n_acked = 0
    made.flow_active = True
    made.can_resume_flow = asyncio.Event()
    made.suspend_flow = asyncio.Event()
    made._stopped = asyncio.Event()
    made._crashed = asyncio.Event()
    made.highwater = lambda tp: 0
    made._committed_offset = defaultdict(lambda: None)
    made._thread = SimpleNamespace(positions={})
    made.on_hole = lambda tp, first, end: None
    made.logs = {}
    made._forget_positions()
    return made


def records(first: int, last: int) -> list[Any]:
    return [
        SimpleNamespace(
            topic=SOURCE.topic, partition=0, offset=n, timestamp=1_700_000_000_000 + n,
            timestamp_type=0, headers=(), key=b"k", value=b"\xff not json", checksum=None,
            serialized_key_size=1, serialized_value_size=1,
        )
        for n in range(first, last + 1)
    ]  # fmt: skip


def message(first: int, last: int, generation: int = 1) -> Any:
    batch = Batch(SOURCE, records(first, last))
    return ConsumerMessage(
        SOURCE.topic, 0, last, 0.0, 0, [], None, batch, None, 0, 0, SOURCE,
        generation_id=generation,
    )  # fmt: skip


def fetching(safe: Any, fetched: dict[TP, list[Any]], positions: dict[TP, int]) -> None:
    """Let the next fetch return these records, and leave the partitions there."""

    async def fetch(timeout: float) -> Any:
        safe._thread.positions = positions
        return fetched, safe._active_partitions

    safe._wait_next_records = fetch
