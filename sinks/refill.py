"""Fill tables again from the log: after a table was dropped, or rows were deleted by hand.

Reads, without a group, everything that the topics of a table still hold, and writes the rows of
that table only. The running sink and its place in the log are not touched, and it may run
meanwhile: rows have the identity and the version that the sink gave them, so a row that is there
already is replaced by itself, and an older one never hides a newer.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from sinks import rows
from sinks.consumer import (
    Undecodable,
    known_options,
    learn_topics,
    log_id,
    make_consumer,
    position_of,
)
from sinks.metrics import SinkMetrics
from sinks.rows import Item
from sinks.writer import Abandoned, BatchIdentity, Writer, describe
from topics.dead_letters import SourceRecord
from topics.models import Unreadable

log = logging.getLogger(__name__)

#: Records of one insert.
_BATCH: Final = 5_000
#: How long the broker may be silent, or ClickHouse refuse.
_PATIENCE_S: Final = 60.0


#: How long to read on behind the ends, on a log that grows.
_AFTERWARDS_S: Final = 1.5


class RefillError(RuntimeError):
    """The log was not read, or not written, to its end."""


@dataclass(slots=True)
class Refilled:
    """What was done."""

    #: Records read, and rows written by table.
    records: int
    rows: dict[str, int]
    #: Records that gave no row: they cannot be read, or ClickHouse refuses them. Their letters were
    #: written when the sink met them.
    passed_over: int = 0


def refill(
    kafka: Mapping[str, Any],
    url: str,
    tables: Sequence[str],
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Refilled:
    """Fill ``tables`` with what the topics hold now; returns when their present ends are reached.

    ``kafka`` are options of kafka-python's consumer, ``url`` as for :func:`sinks.schema.apply`.
    ``progress`` is told how many offsets are done, of how many. Raises ValueError for a table that
    the sink does not write, :class:`RefillError` when a topic is missing, or when the broker or
    ClickHouse does nothing for a minute, and kafka.errors.
    """
    unknown = set(tables) - {table.name for table in rows.TABLES}
    if unknown:
        raise ValueError(f"the sink writes no table {', '.join(sorted(unknown))}")
    metrics = SinkMetrics()
    writer = Writer(url, metrics)
    consumer = make_consumer(
        {
            **known_options(kafka, KafkaConsumer, KafkaProducer),
            "group_id": None,
            "auto_offset_reset": "earliest",
            "enable_auto_commit": False,
            "isolation_level": "read_committed",
            "allow_auto_create_topics": False,
            "metrics_enabled": False,
            "max_poll_records": _BATCH,
        }
    )
    stop = threading.Event()
    watch = threading.Thread(target=_give_up, args=(writer, stop), name="refill", daemon=True)
    watch.start()
    try:
        return _refill(consumer, writer, frozenset(tables), progress)
    except Abandoned as error:
        raise RefillError(f"ClickHouse does not take the rows: {error}") from error
    finally:
        stop.set()
        consumer.close(autocommit=False, timeout_ms=2_000)
        writer.close()


def _give_up(writer: Writer, stop: threading.Event) -> None:
    """The sink waits for ClickHouse for ever; a person does not."""
    while not stop.wait(1.0):
        trouble = writer.trouble
        if trouble is not None and time.monotonic() - trouble.since > _PATIENCE_S:
            writer.abandon()
            return


def topics_of(tables: Iterable[str]) -> tuple[str, ...]:
    """The topics from which the rows of ``tables`` are made, in the order of ``rows.TOPICS``."""
    wanted = set(tables)
    return tuple(topic for topic, makes in rows.MAKES.items() if wanted & set(makes))


def _refill(
    consumer: Any, writer: Writer, tables: frozenset[str], progress: Callable[[int, int], None]
) -> Refilled:
    places = []
    for topic in topics_of(tables):
        numbers = consumer.partitions_for_topic(topic)
        if not numbers:
            raise RefillError(f"there is no topic {topic}")
        places += [TopicPartition(topic, number) for number in sorted(numbers)]
    consumer.assign(places)
    if not learn_topics(consumer, _PATIENCE_S):
        raise RefillError(f"the broker has told nothing about its topics for {_PATIENCE_S:.0f} s")
    begins, ends = consumer.beginning_offsets(places), consumer.end_offsets(places)
    consumer.seek_to_beginning(*places)
    todo = sum(ends[each] - begins[each] for each in places)
    done = Refilled(0, dict.fromkeys(sorted(tables), 0))
    # A salt of its own: ClickHouse would take the rows for a repetition of what it was told before.
    salt = f"refill:{uuid.uuid4()}"
    heard = finished = time.monotonic()
    open_places = {each for each in places if begins[each] < ends[each]}
    batch: list[Any] = [None]
    # Also what comes right behind the ends: the embedded broker tells them short now and then.
    while open_places or batch:
        fetched = consumer.poll(timeout_ms=1_000)
        batch = [record for records in fetched.values() for record in records]
        if not open_places and time.monotonic() - finished > _AFTERWARDS_S:
            break
        if batch:
            heard = time.monotonic()
            _write(consumer, writer, tables, batch, salt, done)
        reached = {each: position_of(consumer, each) for each in places}
        open_places = {each for each in open_places if (reached[each] or 0) < ends[each]}
        if open_places:
            finished = time.monotonic()
        progress(
            sum(
                min(max(reached[each] or 0, begins[each]), ends[each]) - begins[each]
                for each in places
            ),
            todo,
        )
        if time.monotonic() - heard > _PATIENCE_S:
            raise RefillError(f"the broker has sent nothing for {_PATIENCE_S:.0f} s")
    return done


def _write(
    consumer: Any,
    writer: Writer,
    tables: frozenset[str],
    records: Sequence[SourceRecord | Undecodable],
    salt: str,
    done: Refilled,
) -> None:
    identity = BatchIdentity(salt)
    items: list[Item] = []
    done.records += len(records)
    for record in records:
        identity.add([record])
        try:
            if isinstance(record, Undecodable):
                done.passed_over += 1
                continue
            items.append(rows.decode(record))
        except Unreadable:
            done.passed_over += 1
        except Exception as error:
            done.passed_over += 1
            log.warning("%s:%d:%d: %s", record.topic, record.partition, record.offset,
                        describe(error))  # fmt: skip
    placed = {item.record.topic for item in items} & rows.PLACED.keys()
    epochs = {topic: writer.epoch(topic, log_id(consumer, topic)) for topic in placed}
    made, failed = rows.build(items, epochs)
    wanted = [each for each in made if each.table.name in tables]
    refused = writer.write(wanted, identity.token())
    done.passed_over += len(failed) + len(refused)
    for each in wanted:
        done.rows[each.table.name] += len(each.rows)
