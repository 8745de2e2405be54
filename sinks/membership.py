"""The sink as a member of its consumer group: which partitions are ours, and whether we are in."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.consumer.subscription_state import ConsumerRebalanceListener

from sinks.consumer import absence, known_options

log = logging.getLogger(__name__)

#: How long a join waits for members that do not call; this loop calls often.
_MAX_POLL_INTERVAL_MS: Final = 60_000


class Member(Protocol):
    """How a process is a member of a group: a sink, or another that consumes as sinks do."""

    @property
    def kafka(self) -> Mapping[str, Any]:
        """kafka-python's options."""
        ...

    @property
    def group_id(self) -> str:
        """The group."""
        ...

    @property
    def client_id(self) -> str:
        """What the broker shows of the member."""
        ...

    @property
    def max_records(self) -> int:
        """Records of one poll."""
        ...

    @property
    def rejoin_s(self) -> float | None:
        """How long a join may take; None: as long as an honest one may."""
        ...


def consumer_options(config: Member) -> dict[str, Any]:
    """kafka-python's options for the consumer of a sink."""
    return {
        # Batches are cut here, not by the client; a large poll keeps its overhead small.
        "max_poll_records": config.max_records,
        # How long an empty fetch stays at the broker; data are answered at once.
        "fetch_max_wait_ms": 250,
        # A topic that is asked for before it exists would be made with the broker's defaults:
        # too few partitions, no compaction. It is found when its owner has made it.
        "allow_auto_create_topics": False,
        "metadata_max_age_ms": 30_000,
        # How long a broker that came back may wait to be noticed; the default is 30 s.
        "reconnect_backoff_max_ms": 3_000,
        "client_id": config.client_id,
        # The client's statistics cost time and nobody reads them.
        "metrics_enabled": False,
        # Without the package crc32c the client sums in Python, which costs 200 us for a webhook
        # of 9 kB: five times everything else (3,500 records/s with it, 14,500 without). The
        # broker has checked the sum already, TCP has its own, and the contents are validated.
        "check_crcs": importlib.util.find_spec("crc32c") is not None,
        "max_poll_interval_ms": _MAX_POLL_INTERVAL_MS,
        **known_options(config.kafka, KafkaConsumer, KafkaProducer),
        "group_id": config.group_id,
        # History is wanted whole.
        "auto_offset_reset": "earliest",
        # What a transaction took back was never said.
        "isolation_level": "read_committed",
        # Only what ClickHouse has acknowledged is committed.
        "enable_auto_commit": False,
        "key_deserializer": None,
        "value_deserializer": None,
    }


class Ownership(ConsumerRebalanceListener):  # type: ignore[misc]
    """Which partitions are ours, and since which rebalance.

    kafka-python calls these on its I/O thread, where waiting would stop heartbeats; so they only
    take notes.
    """

    def __init__(self) -> None:
        self.joined = False
        self.rebalances = 0
        #: How many rebalances there were, and what was ours after the latest: at once, for who
        #: looks from another thread.
        self.handed_out: tuple[int, frozenset[TopicPartition]] = (0, frozenset())
        self._since: dict[TopicPartition, int] = {}

    def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        """These are ours from now on."""
        self.rebalances += 1
        self._since = {**self._since, **dict.fromkeys(assigned, self.rebalances)}
        self.handed_out = (self.rebalances, frozenset(self._since))
        self.joined = True
        log.info("assigned %d partitions", len(assigned))

    def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        """These go to others."""
        gone = set(revoked)
        self._since = {where: n for where, n in self._since.items() if where not in gone}
        log.info("revoked %d partitions", len(revoked))

    def on_partitions_lost(self, lost: Sequence[TopicPartition]) -> None:
        """These may be with others already."""
        self.on_partitions_revoked(lost)

    def ownership(self, where: TopicPartition) -> int:
        """Number of the rebalance that gave us the partition; 0 when it is not ours."""
        return self._since.get(where, 0)

    def partitions(self) -> tuple[TopicPartition, ...]:
        """All that are ours."""
        return tuple(self._since)

    def leave(self) -> None:
        """We have left the group ourselves."""
        self.joined = False
        self._since = {}


class Membership:
    """Whether we are in the group, and since when not."""

    def __init__(self, config: Member) -> None:
        self.owned = Ownership()
        #: Since when (monotonic) we are no member of the group, and why.
        self.absent: tuple[float, str] | None = None
        self._session_s = float(config.kafka.get("session_timeout_ms", 45_000)) / 1000
        join_s = float(config.kafka.get("max_poll_interval_ms", _MAX_POLL_INTERVAL_MS)) / 1000
        #: How long it may take to become a member (again).
        self.rejoin_s = config.rejoin_s or join_s + self._session_s + 10

    def begin(self) -> None:
        """The group is about to be joined."""
        self.absent = (time.monotonic(), "not a member of the group yet")

    def attend(self, consumer: Any, now: float) -> None:
        """Ask the client whether we are a member."""
        why = absence(consumer, self._session_s)
        if not why:
            self.absent = None
        else:
            self.absent = (self.absent[0] if self.absent else now, why)

    def lost(self) -> bool:
        """Whether we have been no member for so long that only a new connection may help."""
        absent = self.absent
        return absent is not None and time.monotonic() - absent[0] > self.rejoin_s

    def hopeless(self, now: float) -> bool:
        """Whether a new connection has not helped either."""
        absent = self.absent
        return absent is not None and now - absent[0] > 2 * self.rejoin_s
