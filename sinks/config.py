"""How one sink process runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from sinks import rows
from sinks.writer import Backoff


@dataclass(frozen=True, slots=True)
class SinkConfig:
    """How one sink process runs.

    ``kafka`` holds kafka-python client options (``bootstrap_servers``, ``security_protocol``,
    ...); they go to the consumer and to the producer of dead letters, each taking what it knows.
    ``clickhouse_url`` is ``clickhouse://user:password@host:9000/database``.
    """

    kafka: Mapping[str, Any]
    clickhouse_url: str
    group_id: str
    topics: tuple[str, ...] = rows.TOPICS
    #: A batch is due when it has this many records or bytes ...
    max_records: int = 5_000
    max_bytes: int = 16 * 1024 * 1024
    #: ... or when its first record has waited this long (seconds) ...
    latency_s: float = 0.5
    #: ... or when a record that an operator waits for has waited this long. Such flushes are at
    #: least ``urgent_every_s`` apart, so that a busy stream, in which some job always ends, does
    #: not become a stream of tiny inserts: with these values a table never sees more than two a
    #: second, and on a quiet stream the end of a job is visible at once.
    urgent_s: float = 0.05
    urgent_every_s: float = 0.5
    #: At shutdown, how long to try to write what was read. The rest is read again next time.
    close_s: float = 15.0
    #: How long it may take to become a member of the group (again) before the connection is given
    #: up and the group is joined anew. None: as long as an honest join may take, and a session.
    rejoin_s: float | None = None
    #: The cluster that has the tables, by its name in ClickHouse; empty: the one server.
    cluster: str = ""
    #: Apply migrations at start. Otherwise wait until somebody has.
    migrate: bool = True
    backoff: Backoff = field(default_factory=Backoff)
    #: Mixed into the tokens of all inserts. Change it to make ClickHouse accept records again that
    #: were written before and then deleted by hand.
    token_salt: str = ""

    @property
    def client_id(self) -> str:
        """What the broker shows of a member of the group: also which ClickHouse it writes to.

        Sinks of two deployments with one ``group_id`` share the partitions, so each database gets
        a part of the rows. The members' ids are where that can be seen.
        """
        return f"{self.group_id}@{target(self.clickhouse_url)}"


def target(clickhouse_url: str) -> str:
    """Host, port and database of a ClickHouse, without what is secret in the URL."""
    parts = urlsplit(clickhouse_url)
    return f"{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
