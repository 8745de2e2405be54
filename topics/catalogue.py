"""The topics: their names, what each carries under which key, and how each must be set up.

Two programs that disagree about a topic lose data quietly: a changelog without compaction grows
until recovery takes hours, a source topic with fewer partitions than its tables stops the worker.
So every topic is declared here once (`TOPICS`): `topics.apply` makes a cluster agree with it,
readers find its model by its name, and the tables of the documentation are made from it.

Large records. GitHub sends bodies of up to 25 MB. A webhook record carries the body as a JSON
string, which escaping makes longer, so its limit is `MAX_WEBHOOK_BYTES`; a body whose record
exceeds that must be refused where it comes in. A dead letter carries the whole record it is about
in base64, so its limit is a third larger and more: a record that the log accepted can always be
buried. From this follows, outside the topics:

- a producer's `max_request_size` must be at least the topic's limit;
- the brokers' `socket.request.max.bytes` (100 MiB unless set) must exceed `MAX_DEAD_LETTER_BYTES`;
- consumers and followers need no setting: a fetch brings at least one record, however large. But
  they hold it in memory, so bound the number of records that are in flight, not only their bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

from pydantic import TypeAdapter

from topics import events, missed, models, recovery
from topics.tables import TABLES, TableSpec

WEBHOOKS: Final = "runners.webhooks"
LIFECYCLE: Final = "runners.lifecycle"
JOBS: Final = "runners.jobs"
JOB_STATES: Final = "runners.job-states"
WINDOWS: Final = "runners.windows"
SAMPLES: Final = "runners.samples"
PROBES: Final = "runners.probes"
FLEETS: Final = "runners.fleets"
COMMANDS: Final = "runners.commands"
OUTCOMES: Final = "runners.outcomes"
FLEET_STATES: Final = "runners.fleet-states"
EVENTS: Final = "runners.events"
TELEMETRY: Final = "runners.telemetry"
MISSED: Final = "runners.missed"
DEAD_LETTERS: Final = "runners.dead-letters"
#: What is posted to workers, and the logs that they write themselves and fold.
POSTED: Final = (WEBHOOKS, LIFECYCLE, OUTCOMES, EVENTS)
LOGS: Final = (JOBS, FLEETS, TELEMETRY)

Cleanup = Literal["delete", "compact", "compact,delete"]

_MINUTE_MS = 60_000
_DAY_MS = 24 * 60 * _MINUTE_MS
_MEBIBYTE = 1 << 20

#: Largest record of `WEBHOOKS`, in bytes: 25 MB and a third more for escaping.
MAX_WEBHOOK_BYTES: Final = 32 * _MEBIBYTE
#: Largest record of `DEAD_LETTERS`, in bytes: base64 of the above, and room for the rest.
MAX_DEAD_LETTER_BYTES: Final = 4 * (MAX_WEBHOOK_BYTES + 2) // 3 + _MEBIBYTE

# A GHES server redelivers for 7 days; what it sends last must still find its elder siblings.
_REDELIVERY_MS = 8 * _DAY_MS


@dataclass(frozen=True)
class TopicSpec:
    """How one topic must be set up.

    Attributes:
        name: of the topic.
        partitions: how many; never changed later, since a key would change its partition.
        cleanup: what happens to old records: deleted by age, compacted by key, or both.
        retention_ms: how long records are kept, in milliseconds; None for a topic that is only
            compacted, where age does not matter.
        replication_factor: copies of each partition.
        min_insync_replicas: copies that must have a record before it is acknowledged.
        description: what the topic carries.
        extra: further topic settings, by Kafka's names.
    """

    name: str
    partitions: int
    cleanup: Cleanup
    retention_ms: int | None
    replication_factor: int
    min_insync_replicas: int
    description: str
    extra: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        """Raise ValueError for what no cluster could do."""
        if self.partitions < 1:
            raise ValueError(f"{self.name}: partitions must be at least 1, not {self.partitions}")
        if self.replication_factor < 1:
            raise ValueError(
                f"{self.name}: replication_factor must be at least 1, not {self.replication_factor}"
            )
        if not 1 <= self.min_insync_replicas <= self.replication_factor:
            raise ValueError(
                f"{self.name}: min_insync_replicas must be between 1 and the replication factor "
                f"{self.replication_factor}, not {self.min_insync_replicas}: nothing could be "
                "written"
            )
        if ("delete" in self.cleanup) != (self.retention_ms is not None):
            raise ValueError(
                f"{self.name}: cleanup {self.cleanup!r} and retention_ms {self.retention_ms} "
                "contradict each other"
            )

    def settings(self) -> dict[str, str]:
        """The topic's settings by Kafka's names, partitions and replication left out."""
        settings = {
            "cleanup.policy": self.cleanup,
            "message.timestamp.type": "CreateTime",
            "min.insync.replicas": str(self.min_insync_replicas),
        }
        if self.retention_ms is not None:
            settings["retention.ms"] = str(self.retention_ms)
        return {**settings, **self.extra}


@dataclass(frozen=True)
class Topic:
    """All that is declared of one topic of records.

    Attributes:
        name: of the topic.
        description: what it carries.
        adapter: parses a record's value.
        kinds: the kinds of records on it. Other providers add theirs to `WEBHOOKS`.
        key: what the Kafka key is, in words.
        cleanup: what happens to old records.
        retention_ms: how long records are kept, in milliseconds; None: until they are replaced.
        extra: further topic settings, by Kafka's names.
    """

    name: str
    description: str
    adapter: TypeAdapter[Any]
    kinds: tuple[str, ...]
    key: str
    cleanup: Cleanup
    retention_ms: int | None
    extra: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


_HOURLY = {"segment.ms": str(60 * _MINUTE_MS)}

#: Every topic that carries records of `topics.models`, in the order in which data flows.
TOPICS: Final = (
    Topic(
        WEBHOOKS,
        "webhook deliveries as they arrived",
        models.DELIVERY,
        models.Delivery.KINDS,
        "any, or none: it spreads the load",
        "delete",
        _REDELIVERY_MS,
        {"max.message.bytes": str(MAX_WEBHOOK_BYTES)},
    ),
    Topic(
        LIFECYCLE,
        "what dispatchers and runner hosts report about jobs",
        models.LIFECYCLE,
        tuple(kind.value for kind in models.LifecycleKind),
        "the job's",
        "delete",
        _REDELIVERY_MS,
    ),
    Topic(
        JOBS,
        "everything known about jobs, and the clock's ticks, keyed by job",
        models.JOBS_RECORD,
        ("job.fact", "run.fact", "run.link", "tick"),
        "the job's; a run's for what is said of the run; `tick:` and the partition",
        "delete",
        _REDELIVERY_MS,
    ),
    Topic(
        JOB_STATES,
        "the latest state of each job, keyed by job",
        models.JOB_STATE,
        ("job.state",),
        "the job's",
        "compact",
        None,
        _HOURLY,
    ),
    Topic(
        WINDOWS,
        "timings per fleet and window, keyed by window",
        models.WINDOW,
        ("window",),
        "fleet, size, start and partition",
        "compact,delete",
        _REDELIVERY_MS,
        _HOURLY,
    ),
    Topic(
        SAMPLES,
        "depth and oldest age per fleet, sampled",
        models.SAMPLE,
        ("sample",),
        "fleet, status and partition",
        "delete",
        3 * _DAY_MS,
    ),
    Topic(
        PROBES,
        "questions to providers about jobs that may be stuck",
        recovery.PROBE,
        ("probe",),
        "the job's",
        "delete",
        3 * _DAY_MS,
    ),
    Topic(
        FLEETS,
        "everything known about fleets: runners, proposals, decisions, and the clock's ticks",
        models.FLEETS_RECORD,
        (
            "runner.seen",
            "host.gone",
            "fleet.depth",
            "stall.proposed",
            "command.decided",
            "command.outcome",
            "switch",
            "tick",
        ),
        "the fleet's; `switch:` and the fleet; `tick:` and the partition",
        "delete",
        _REDELIVERY_MS,
    ),
    Topic(
        FLEET_STATES,
        "the latest state of each fleet, keyed by fleet",
        recovery.FLEET_STATE,
        ("fleet.state",),
        "the fleet's",
        "compact",
        None,
        _HOURLY,
    ),
    Topic(
        COMMANDS,
        "what executors are to do about stuck jobs and fleets",
        recovery.COMMAND,
        ("command",),
        "the job's; the fleet's for what concerns a fleet",
        "delete",
        _REDELIVERY_MS,
    ),
    Topic(
        OUTCOMES,
        "what executors made of commands",
        recovery.OUTCOME,
        ("command.started", "command.ended"),
        "as the command's",
        "delete",
        _REDELIVERY_MS,
    ),
    Topic(
        EVENTS,
        "what dispatchers, pools, runners, schedulers and reconcilers say about themselves",
        events.EVENT,
        events.KINDS,
        "any, or none: the pipeline sets it",
        "delete",
        3 * _DAY_MS,
    ),
    Topic(
        TELEMETRY,
        "the same keyed by what it is about, what waits in each fleet, and the clock's ticks",
        events.TELEMETRY_RECORD,
        (*events.KINDS, "fleet.depth", "tick"),
        "family, fleet and subject; `tick:` and the partition",
        "delete",
        _REDELIVERY_MS,
    ),
    Topic(
        MISSED,
        "what is known of webhooks that never came, keyed by the list that they stand in",
        missed.MISSED,
        ("missed.delivery", "missed.hook", "missed.runs"),
        "the hook's or repository's; with `|` and the GUID of a delivery",
        "compact",
        None,
        _HOURLY,
    ),
    Topic(
        DEAD_LETTERS,
        "records that could not be handled, with the reason",
        models.DEAD_LETTER,
        ("dead_letter",),
        "the place of the record it is about: topic, partition and offset",
        "delete",
        30 * _DAY_MS,
        {"max.message.bytes": str(MAX_DEAD_LETTER_BYTES)},
    ),
)

#: The same by name.
BY_NAME: Final[Mapping[str, Topic]] = MappingProxyType({topic.name: topic for topic in TOPICS})


def catalogue(
    partitions: int = 8,
    replication_factor: int = 1,
    min_insync_replicas: int = 1,
    app_id: str = "runnerstream",
    tables: Iterable[TableSpec] = TABLES,
) -> tuple[TopicSpec, ...]:
    """How every topic that the program reads or writes is set up, Faust's own included.

    Args:
        partitions: of every topic but the leader's; more of them allow more workers.
        replication_factor: 3 where nothing may be lost, 1 on a laptop.
        min_insync_replicas: 2 with a replication factor of 3.
        app_id: Faust's application id, which begins the names of its own topics.
        tables: of the folds; each has a changelog topic.

    Raises:
        ValueError: for numbers that contradict each other.
    """
    copies = (replication_factor, min_insync_replicas)
    # A worker reads the whole changelog before it works. The open segment is never compacted, so
    # it is closed often, and a tenth of outdated records is enough to start compaction.
    often = {"segment.ms": str(10 * _MINUTE_MS), "min.cleanable.dirty.ratio": "0.1"}
    return (
        *(
            TopicSpec(
                topic.name, partitions, topic.cleanup, topic.retention_ms, *copies,
                topic.description, topic.extra,
            )
            for topic in TOPICS
        ),
        *(
            TopicSpec(
                table.changelog(app_id), partitions, "compact", None, *copies,
                table.description, often,
            )
            for table in tables
        ),
        TopicSpec(
            f"{app_id}-__assignor-__leader", 1, "delete", _DAY_MS, *copies,
            "whose worker owns this one partition leads",
        ),
    )  # fmt: skip
