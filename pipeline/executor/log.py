"""Follows ``runners.outcomes``, all partitions of it, on a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from pipeline.executor.outcomes import HOLDER, Deed, Deeds, now_ms
from sinks.consumer import known_options, make_consumer, position_of
from sinks.writer import Backoff
from topics.catalogue import OUTCOMES
from topics.models import Unreadable
from topics.reading import read
from topics.recovery import OUTCOME

log = logging.getLogger(__name__)

#: How long the broker may take to say where a log begins, ends, or stands at a time.
_ANSWER_MS: Final = 5_000
#: How long one poll waits; data are answered at once.
_POLL_MS: Final = 200
#: How often what is old is forgotten. Seconds.
_FORGET_EVERY_S: Final = 600.0


def reader_options(kafka: Mapping[str, Any], client_id: str) -> dict[str, Any]:
    """kafka-python's options for a consumer that is told what to read."""
    return {
        "client_id": client_id,
        "metrics_enabled": False,
        "allow_auto_create_topics": False,
        "metadata_max_age_ms": 30_000,
        "reconnect_backoff_max_ms": 3_000,
        "fetch_max_wait_ms": 250,
        # It is tried again; meanwhile it can be stopped.
        "bootstrap_timeout_ms": 5_000,
        **known_options(kafka, KafkaConsumer, KafkaProducer),
        "enable_auto_commit": False,
        "isolation_level": "read_committed",
        # The log is shorter than it was: it was made anew.
        "auto_offset_reset": "earliest",
        "key_deserializer": None,
        "value_deserializer": None,
    }


def places_at(
    consumer: Any, topic: str, at_ms: int
) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
    """Where each partition of a topic stands at a time, and where it ends. Empty: no such topic.

    Raises kafka.errors.KafkaError.
    """
    found = consumer.partitions_for_topic(topic)
    places = [TopicPartition(topic, number) for number in sorted(found or ())]
    if not places:
        return {}, {}
    # The ends first: what is written meanwhile lies behind them.
    ends = consumer.end_offsets(places, timeout_ms=_ANSWER_MS)
    at = consumer.offsets_for_times(dict.fromkeys(places, at_ms), timeout_ms=_ANSWER_MS)
    begin = {where: ends[where] if at.get(where) is None else at[where].offset for where in places}
    return begin, dict(ends)


class OutcomeLog:
    """What is known of commands, kept up to date until closed. Safe from any thread.

    Args:
        history_s: how far back it reads at first, and what it forgets again later.
    """

    def __init__(
        self,
        kafka: Mapping[str, Any],
        client_id: str,
        history_s: float,
        backoff: Backoff,
    ) -> None:
        self._options = reader_options(kafka, client_id)
        self._history_ms = int(history_s * 1000)
        self._backoff = backoff
        self._deeds = Deeds()
        #: Guards what follows, and tells that something was read.
        self._news = threading.Condition()
        self._horizon = now_ms() - self._history_ms
        self._asked, self._reached = 1, 0
        self._reload = True
        #: Why nothing can be read; empty when it can.
        self.trouble = "not read yet"
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="outcomes", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def close(self) -> None:
        """Stop reading."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(5)

    @property
    def current(self) -> bool:
        """Whether all was read that was written before :meth:`catch_up` was called last."""
        with self._news:
            return self._reached >= self._asked and not self._reload

    def catch_up(self, since_ms: int | None = None) -> None:
        """Be current again only after reading up to the end of now, and back to ``since_ms``."""
        with self._news:
            self._asked += 1
            if since_ms is not None and since_ms < self._horizon:
                self._horizon = since_ms
                self._reload = True

    def reaches(self, since_ms: int) -> bool:
        """Whether what was written at that time would be known."""
        with self._news:
            return since_ms >= self._horizon

    def get(self, command_id: str) -> Deed | None:
        """What is known of a command."""
        with self._news:
            return self._deeds.get(command_id)

    def holder(self, command_id: str, timeout_s: float) -> str:
        """Who began the command, as soon as that is read; empty when it is not within the time."""
        deadline = time.monotonic() + timeout_s
        with self._news:
            while True:
                deed = self._deeds.get(command_id)
                if deed is not None and deed.holder:
                    return deed.holder
                left = deadline - time.monotonic()
                if left <= 0 or self._closing.is_set():
                    return ""
                self._news.wait(min(left, 1.0))

    # --- its thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        failures = 0
        consumer: Any = None
        forgot = time.monotonic()
        while not self._closing.is_set():
            try:
                if consumer is None:
                    consumer = make_consumer(self._options)
                    with self._news:
                        self._reload = True
                self._turn(consumer)
                failures, self.trouble = 0, ""
            except KafkaError as error:
                failures += 1
                told = f"{type(error).__name__}: {error}"
                if not self.trouble or failures == 1:
                    log.warning("outcomes cannot be read, trying on: %s", told)
                self.trouble = told
                self._closing.wait(self._backoff.delay(failures))
            if time.monotonic() - forgot > _FORGET_EVERY_S:
                forgot = time.monotonic()
                self._forget()
        if consumer is not None:
            consumer.close(autocommit=False, timeout_ms=2_000)

    def _turn(self, consumer: Any) -> None:
        with self._news:
            reload, asked, since = self._reload, self._asked, self._horizon
        if reload:
            begin, _ = places_at(consumer, OUTCOMES, since)
            if not begin:
                raise KafkaError(f"there is no topic {OUTCOMES}: `runnerstream topics apply`")
            consumer.assign(list(begin))
            for where, offset in begin.items():
                consumer.seek(where, offset)
            with self._news:
                self._deeds.clear()
                self._reload = self._horizon < since
        self._read(consumer)
        if self._reached < asked:
            ends = consumer.end_offsets(sorted(consumer.assignment()), timeout_ms=_ANSWER_MS)
            while not self._closing.is_set() and any(
                (position_of(consumer, where) or 0) < end for where, end in ends.items()
            ):
                if not self._read(consumer):
                    # The end may have moved back: a log that was made anew.
                    latest = consumer.end_offsets(list(ends), timeout_ms=_ANSWER_MS)
                    ends = {where: min(end, latest[where]) for where, end in ends.items()}
            with self._news:
                self._reached = asked
                self._news.notify_all()

    def _read(self, consumer: Any) -> bool:
        """Take what has arrived; whether there was anything."""
        fetched = consumer.poll(timeout_ms=_POLL_MS)
        now = time.monotonic()
        with self._news:
            for records in fetched.values():
                for record in records:
                    self._take(record, now)
            if fetched:
                self._news.notify_all()
        return bool(fetched)

    def _take(self, record: Any, now: float) -> None:
        try:
            outcome = read(OUTCOME, record.value)
        except Unreadable as why:
            # Who folds outcomes buries it.
            log.warning("outcome %d:%d is passed over: %s", record.partition, record.offset,
                        why.error)  # fmt: skip
            return
        holder = next((value for name, value in record.headers if name == HOLDER), None)
        self._deeds.add(outcome, (holder or b"").decode("utf-8", "replace"), now)

    def _forget(self) -> None:
        before = now_ms() - 2 * self._history_ms
        with self._news:
            self._deeds.forget(before)
            self._horizon = max(self._horizon, before)
