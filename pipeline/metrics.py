"""The metrics of the worker, declared once: name, type, unit, labels with their values, meaning.

Pure data. Whoever counts refers to a constant of this module (``Note(WEBHOOKS, ("push",))``), so
that a wrong name or a wrong number of labels is a type error. :mod:`pipeline.exporter` makes the
series from it, and docs/operators.md its table.

Labels are closed lists and ``fleet`` only. Ids live in ClickHouse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any, ClassVar, Final, Generic, Literal, TypeVar

from topics.catalogue import LOGS, POSTED
from topics.models import Conclusion, Family, LifecycleKind, Reason, Status
from topics.recovery import CommandKind, Mode, Result, StallKind, Why

PREFIX: Final = "runnerstream_"

#: The values of a metric's labels, in order: ``tuple[()]``, ``tuple[str]``, ``tuple[str, str]``.
L = TypeVar("L", bound=tuple[str, ...])


class Source(Enum):
    """Who knows the values of a label that this module cannot list."""

    #: Fleets as they are first seen. Those beyond the limit share one value.
    FLEET = "fleet"
    #: The events of all providers.
    EVENT = "event"
    #: The optional fields of the envelope and of all providers.
    ODD_FIELD = "odd_field"
    #: What can be odd about a field, as the providers' base says.
    ODD_REASON = "odd_reason"
    #: The roles that run in processes beside a worker, as they are started.
    ROLE = "role"


@dataclass(frozen=True, eq=False)
class Label:
    """A label with all its values. A closed list exists, at 0, from the start."""

    name: str
    values: tuple[str, ...] | Source


@dataclass(frozen=True, eq=False)
class Metric(Generic[L]):
    """One metric. Compared by identity, which is what makes counting by it cheap.

    Attributes:
        name: without the prefix, and without the ``_total`` of a counter.
        help: what it tells.
        unit: what a value counts or measures.
        labels: in the order in which their values are given; a fleet comes first.
        group: a word. The series of a fleet exist once the fleet is seen in that group, all of
            them, at 0. So a fleet without claims does not show claims that start at once, and
            one without pools no empty pool. Without a group: once the fleet is seen at all.
        together: whether our series are of all fleets together, because each fleet's own would be
            too many. The first label is a fleet all the same, and who follows ours has it.
        in_advance: whether the series of closed lists exist from the start. False only for a gauge
            that is blind until it is set.
    """

    kind: ClassVar[str]

    name: str
    help: str
    unit: str
    labels: tuple[Label, ...] = ()
    group: str = ""
    in_advance: bool = True
    together: bool = False

    @property
    def by_fleet(self) -> bool:
        """Whether the first label of our series is a fleet."""
        return bool(self.shown_labels) and self.shown_labels[0].values is Source.FLEET

    @property
    def shown_labels(self) -> tuple[Label, ...]:
        """The labels of our series."""
        return self.labels[self.together :]

    @property
    def shown(self) -> str:
        """The name as Prometheus shows it."""
        return PREFIX + self.name + ("_total" if self.kind == "counter" else "")

    @property
    def told(self) -> str:
        """The help as Prometheus shows it."""
        return self.help


@dataclass(frozen=True, eq=False)
class Counter(Metric[L]):
    """Something that happens and is counted."""

    kind: ClassVar[str] = "counter"


@dataclass(frozen=True, eq=False)
class Gauge(Metric[L]):
    """Something as it is now.

    Attributes:
        over: how values under the same labels are brought together: those of a worker's
            partitions, of fleets that share a label, and of several workers.
        partial: whether a label's value that nobody told is not known, rather than 0.
    """

    kind: ClassVar[str] = "gauge"

    over: Literal["sum", "max"] = "sum"
    partial: bool = False

    @property
    def told(self) -> str:
        """The help as Prometheus shows it: also how it is read over several workers."""
        return f"{self.help} {self.over.capitalize()} over workers."


#: A gauge, its labels, and how it is now.
Level = tuple[Gauge[Any], tuple[str, ...], float]


@dataclass(frozen=True, eq=False)
class Histogram(Metric[L]):
    """A distribution. ``buckets``: upper bounds, in the metric's unit."""

    kind: ClassVar[str] = "histogram"

    buckets: tuple[float, ...] = ()


# A bucket is a series, once for each fleet: no more of them than somebody sets a goal at. What lies
# between is in ClickHouse, exactly.
#: 5 s to 24 h: providers tell whole seconds, and GitHub fails a job that waited for a self-hosted
#: runner for 24 h.
QUEUE_BUCKETS: Final = (5, 30, 60, 120, 300, 900, 3600, 86400)
CLAIM_BUCKETS: Final = (1, 5, 30, 120, 600)
#: 30 s to 24 h; 6 h is how long a job runs unless its workflow says otherwise.
RUN_BUCKETS: Final = (30, 120, 300, 900, 3600, 21600, 86400)
TOTAL_BUCKETS: Final = (60, 300, 1800, 3600, 86400)
#: 15 s to 24 h: with a signal from its host a job is freed within 90 s, an orphan within 6 min;
#: without anything it is closed after a day.
STRANDED_BUCKETS: Final = (15, 30, 90, 360, 600, 1800, 7200, 86400)
LAG_BUCKETS: Final = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 3600, 86400, 259200)
BATCH_SECONDS: Final = (0.005, 0.025, 0.05, 0.1, 0.25, 1, 5)
BATCH_RECORDS: Final = (1, 10, 100, 500, 1000, 2500, 5000)

#: The kinds of stall that a job lies in until it is freed. Of a missed completion nobody knows
#: since when; the others are no states of a job.
STRANDING: Final = tuple(
    kind.value
    for kind in StallKind
    if kind not in (StallKind.MISSED_COMPLETION, StallKind.STARVED, StallKind.FLAPPING)
)
_FAMILY_NAMES: Final = tuple(family.value for family in Family)

#: Why a completed job lacks a timing.
MISSING_REASONS: Final = (
    "not_started", "pending", "no_queued", "no_started", "no_completed", "no_claim",
    "gate_unknown", "negative", "copied",
)  # fmt: skip

#: The groups of fleets whose jobs are claimed, and of those that recovery knows.
CLAIMS: Final = "claims"
RECOVERY: Final = "recovery"

FLEET: Final = Label("fleet", Source.FLEET)
_EVENT = Label("event", Source.EVENT)
#: What stranded time is called among the families of timings.
STRANDED: Final = "stranded"
_FAMILY = Label("family", _FAMILY_NAMES)
_MEASURED = Label("family", (*_FAMILY_NAMES, STRANDED))
_ROLE = Label("role", Source.ROLE)
_STAGE = Label("stage", ("normalise", "fold", "fleets", "telemetry"))
_STATUS = Label("status", tuple(status.value for status in Status))
_LIVE = Label("status", tuple(s.value for s in Status if s is not Status.COMPLETED))
_STALL = Label("stall", tuple(kind.value for kind in StallKind))
#: A look at a job opens one of these; about most of them the provider is asked.
OPENED_STALLS: Final = (*STRANDING, StallKind.MISSED_COMPLETION.value)
ASKED_STALLS: Final = tuple(kind for kind in OPENED_STALLS if kind != StallKind.STALE_CLAIM.value)
_OPENED = Label("stall", OPENED_STALLS)
_ASKED = Label("stall", ASKED_STALLS)
_COMMAND = Label("command", tuple(kind.value for kind in CommandKind))
_TOPIC = Label("topic", POSTED + LOGS)
_MODE = Label("mode", tuple(mode.value for mode in Mode))

WEBHOOKS: Final = Counter[tuple[str]](
    "webhooks", "Webhook deliveries understood.", "deliveries", (_EVENT,)
)
IGNORED_WEBHOOKS: Final = Counter[tuple[str]](
    "webhooks_ignored",
    "Authentic deliveries that say nothing about jobs: GitHub's ping, or another event.",
    "deliveries",
    (Label("event", ("ping", "other")),),
)
#: What the routes leave a job's delivery without.
UNROUTED_REASONS: Final = ("no_account", "no_fleet")
UNROUTED: Final = Counter[tuple[str]](
    "webhooks_unrouted",
    "Deliveries about jobs that the configured routes leave without an account, or a fleet.",
    "deliveries",
    (Label("reason", UNROUTED_REASONS),),
)
#: What a job's delivery tells. Providers have words of their own for it.
WEBHOOK_ACTIONS: Final = ("queued", "waiting", "in_progress", "completed", "other")
WEBHOOK_OUTCOMES: Final = ("accepted", *UNROUTED_REASONS, "malformed")
WEBHOOK_JOBS: Final = Counter[tuple[str, str]](
    "webhook_jobs",
    "Deliveries about jobs, by what they tell and what became of them. Of malformed ones nobody "
    "knows what they tell, so those about other things are among them.",
    "deliveries",
    (Label("action", WEBHOOK_ACTIONS), Label("outcome", WEBHOOK_OUTCOMES)),
)
ODD_FIELDS: Final = Counter[tuple[str, str]](
    "odd_fields",
    "Optional fields with a value that cannot be, treated as missing. The event counts.",
    "fields",
    (Label("field", Source.ODD_FIELD), Label("reason", Source.ODD_REASON)),
)
LIFECYCLE_EVENTS: Final = Counter[tuple[str]](
    "lifecycle_events",
    "Lifecycle events understood.",
    "events",
    (Label("kind", tuple(kind.value for kind in LifecycleKind)),),
)
WEBHOOK_LAG: Final = Histogram[tuple[()]](
    "webhook_lag_seconds",
    "From the event at the provider to its arrival here.",
    "seconds",
    buckets=LAG_BUCKETS,
)
TRANSITIONS: Final = Counter[tuple[str, str]](
    "job_transitions", "Jobs that entered a status.", "jobs", (FLEET, _STATUS)
)
COMPLETIONS: Final = Counter[tuple[str, str]](
    "jobs_completed",
    "Jobs that completed.",
    "jobs",
    (FLEET, Label("conclusion", tuple(conclusion.value for conclusion in Conclusion))),
)
REQUEUES: Final = Counter[tuple[str]](
    "job_requeues",
    "Claims released before their job had begun: it went back to the queue.",
    "claims",
    (FLEET,),
    group=CLAIMS,
    together=True,
)
QUEUE_SECONDS: Final = Histogram[tuple[str]](
    "job_queue_seconds",
    "Queued to started, without approval gates.",
    "seconds",
    (FLEET,),
    buckets=QUEUE_BUCKETS,
)
QUEUE_TO_CLAIM_SECONDS: Final = Histogram[tuple[str]](
    "job_queue_to_claim_seconds",
    "Queued to claimed by a runner, once a job: of the claim that was known first.",
    "seconds",
    (FLEET,),
    group=CLAIMS,
    together=True,
    buckets=CLAIM_BUCKETS,
)
CLAIM_TO_START_SECONDS: Final = Histogram[tuple[str]](
    "job_claim_to_start_seconds",
    "Claimed by a runner to started.",
    "seconds",
    (FLEET,),
    group=CLAIMS,
    buckets=CLAIM_BUCKETS,
)
RUN_SECONDS: Final = Histogram[tuple[str]](
    "job_run_seconds", "Started to completed.", "seconds", (FLEET,), buckets=RUN_BUCKETS
)
TOTAL_SECONDS: Final = Histogram[tuple[str]](
    "job_total_seconds", "Queued to completed.", "seconds", (FLEET,), buckets=TOTAL_BUCKETS
)
#: The metric of each family of timings.
TIMINGS: Final[Mapping[str, Histogram[tuple[str]]]] = MappingProxyType(
    {
        Family.QUEUE.value: QUEUE_SECONDS,
        Family.CLAIM_TO_START.value: CLAIM_TO_START_SECONDS,
        Family.RUN.value: RUN_SECONDS,
        Family.TOTAL.value: TOTAL_SECONDS,
    }
)
REVISED_TIMINGS: Final = Counter[tuple[str]](
    "timings_revised",
    "Timings that a later fact changed after they were observed.",
    "timings",
    (_MEASURED,),
)
MISSING_TIMINGS: Final = Counter[tuple[str, str]](
    "timings_missing",
    "Timings a completed job does not have, by reason.",
    "timings",
    (_FAMILY, Label("reason", MISSING_REASONS)),
)
CLAMPED_TIMINGS: Final = Counter[tuple[str]](
    "timings_clamped",
    "Timings of completed jobs set to 0 because whole-second clocks crossed.",
    "timings",
    (_FAMILY,),
)
LATE_SAMPLES: Final = Counter[tuple[str]](
    "late_samples",
    "Samples that came after their window had closed. They are in ClickHouse.",
    "samples",
    (Label("family", (*_FAMILY_NAMES, STRANDED, "conclusion")),),
)
DUPLICATE_FACTS: Final = Counter[tuple[()]](
    "duplicate_facts", "Facts that were known already.", "facts"
)
OUT_OF_ORDER_FACTS: Final = Counter[tuple[()]](
    "out_of_order_facts", "Facts older than the status their job had reached.", "facts"
)
CROWDED_FACTS: Final = Counter[tuple[()]](
    "crowded_facts",
    "Facts of jobs that know 1,000 already: merged, their number is an estimate.",
    "facts",
)
FUTURE_TIMES: Final = Counter[tuple[()]](
    "future_times",
    "Times that are not believed: of jobs more than a day ahead, which are dated by arrival; of "
    "telemetry more than an hour, which changes nothing.",
    "facts",
)
REFUSED_TICKS: Final = Counter[tuple[str]](
    "ticks_refused",
    "Ticks that did not move the clock of their partition: too far ahead, or behind it.",
    "ticks",
    (Label("reason", ("future", "past")),),
)
HEALED_CLOCKS: Final = Counter[tuple[()]](
    "clocks_healed", "Partition clocks that stood in the future and were taken back.", "clocks"
)
EXPIRED_FACTS: Final = Counter[tuple[()]](
    "expired_facts", "Facts about jobs forgotten long ago.", "facts"
)
EXPIRED_JOBS: Final = Counter[tuple[str]](
    "jobs_expired", "Jobs removed from the table.", "jobs", (_STATUS,)
)
CLOSED_WINDOWS: Final = Counter[tuple[str]](
    "windows_closed", "Windows that closed.", "windows", (Label("size_s", ("60", "300", "3600")),)
)
OFFSET_GAPS: Final = Counter[tuple[()]](
    "offset_gaps", "Times that records were removed from a topic before they were read.", "times"
)
RECORDS_MISSED: Final = Counter[tuple[str]](
    "records_missed",
    "Records that were removed from a topic before they were read.",
    "records",
    (_TOPIC,),
)
DEAD_LETTERS: Final = Counter[tuple[str, str]](
    "dead_letters",
    "Records put aside.",
    "records",
    (_STAGE, Label("reason", tuple(reason.value for reason in Reason))),
)
RECORDS: Final = Counter[tuple[str]]("records", "Records handled.", "records", (_STAGE,))
BATCH_SIZE: Final = Histogram[tuple[str]](
    "batch_records", "Records in a transaction.", "records", (_STAGE,), buckets=BATCH_RECORDS
)
BATCH_TIME: Final = Histogram[tuple[str]](
    "batch_seconds",
    "Time of a transaction, all steps, two at a time.",
    "seconds",
    (_STAGE,),
    buckets=BATCH_SECONDS,
)
FOLD_TIME: Final = Histogram[tuple[str]](
    "fold_seconds",
    "Time of steps 3 and 4: decode and fold, while the transaction before is written.",
    "seconds",
    (_STAGE,),
    buckets=BATCH_SECONDS,
)
TICKS: Final = Counter[tuple[()]]("ticks", "Ticks sent by the clock.", "ticks")
TICK_LAG: Final = Gauge[tuple[()]](
    "tick_lag_seconds",
    "Age of the oldest latest tick over owned partitions: how far behind the fold is.",
    "seconds",
    over="max",
)
CONSUMER_LAG: Final = Gauge[tuple[str]](
    "consumer_lag_records",
    "Records that the worker's group has not done yet, owned partitions.",
    "records",
    (_TOPIC,),
    in_advance=False,
)
STALLS_OPENED: Final = Counter[tuple[str]](
    "stalls_opened", "Jobs found in what may be a wrong state.", "stalls", (_OPENED,)
)
RECOVERY_PROBES: Final = Counter[tuple[str]](
    "recovery_probes", "Questions to providers about jobs.", "probes", (_ASKED,)
)
RECOVERY_PROPOSALS: Final = Counter[tuple[str]](
    "recovery_proposals", "Commands proposed to fleets.", "proposals", (_COMMAND,)
)
RECOVERY_CLOSED: Final = Counter[tuple[str]](
    "recovery_closed",
    "Jobs recorded as over because their run is, or their provider does not know them.",
    "jobs",
    (Label("answer", ("ghost", "gone")),),
)
STRANDED_SECONDS: Final = Histogram[tuple[str, str]](
    "stranded_seconds",
    "How long jobs lay in a wrong state, once they had left it.",
    "seconds",
    (FLEET, Label("stall", STRANDING)),
    group=CLAIMS,
    together=True,
    buckets=STRANDED_BUCKETS,
)
RECOVERY_OVER: Final = Counter[tuple[str]](
    "recovery_found_over",
    "Jobs in what may be a wrong state that their provider, asked, calls over.",
    "jobs",
    (_ASKED,),
)
#: The commands that free a job.
JOB_COMMANDS: Final = tuple(
    kind.value for kind in (CommandKind.RELEASE_CLAIM, CommandKind.REQUEUE, CommandKind.CLOSE)
)
RECOVERY_DONE: Final = Counter[tuple[str, str]](
    "recovery_done",
    "Commands about jobs that were done, by the wrong state that they were for.",
    "commands",
    (_OPENED, Label("command", JOB_COMMANDS)),
)
RECOVERY_SWEEPS: Final = Counter[tuple[()]](
    "recovery_sweeps",
    "Ticks at which the rules of recovery were run. While it stands still, nothing is recovered.",
    "ticks",
)
READY: Final = Gauge[tuple[()]]("ready", "1 when /readyz says ready.", "0 or 1")
FLEETS_UNNAMED: Final = Gauge[tuple[()]](
    "fleets_unnamed",
    "Fleets that share `other` in all metrics or some, beyond `max_fleet_labels` or for want of "
    "room under `max_series`; 1,000 stands for that many or more.",
    "fleets",
    over="max",
)
ROLE_UP: Final = Gauge[tuple[str]](
    "role_up", "1 while the process of a role beside the worker runs.", "0 or 1", (_ROLE,)
)
ROLE_RESTARTS: Final = Counter[tuple[str]](
    "role_restarts",
    "Times that the process of a role beside the worker ended and was started again.",
    "times",
    (_ROLE,),
)
JOBS: Final = Gauge[tuple[str, str]](
    "jobs",
    "Live jobs by status, in this worker's partitions.",
    "jobs",
    (FLEET, _LIVE),
)
OLDEST: Final = Gauge[tuple[str, str]](
    "oldest_seconds",
    "Age of the job longest in the status, 0 when there is none.",
    "seconds",
    (FLEET, _LIVE),
    over="max",
)
STALLS_OPEN: Final = Gauge[tuple[str]](
    "stalls_open",
    "Jobs in a wrong state now, in this worker's partitions; flapping: left to a person; starved: "
    "waiting while their fleet has idle runners.",
    "jobs",
    (_STALL,),
    in_advance=False,
)
STALLS_OLDEST: Final = Gauge[tuple[str]](
    "stalls_oldest_seconds",
    "For how long the job longest in a wrong state is in it, 0 when there is none.",
    "seconds",
    (_STALL,),
    in_advance=False,
    over="max",
)
RECOVERY_COMMANDS: Final = Counter[tuple[str]](
    "recovery_commands", "Commands issued to executors.", "commands", (_COMMAND,)
)
RECOVERY_WITHHELD: Final = Counter[tuple[str]](
    "recovery_withheld",
    "Commands withheld, once for each proposal and reason.",
    "commands",
    (Label("reason", tuple(why.value for why in Why)),),
)
RECOVERY_OUTCOMES: Final = Counter[tuple[str, str]](
    "recovery_outcomes",
    "Commands that ended. One that expired and was done all the same counts twice.",
    "commands",
    (_COMMAND, Label("result", tuple(result.value for result in Result))),
)
RECOVERY_SWITCHES: Final = Counter[tuple[str]](
    "recovery_switches",
    "Switches thrown, by what was asked for; none takes one back.",
    "switches",
    (Label("mode", (*(mode.value for mode in Mode), "none")),),
)
RECOVERY_BREAKER_OPEN: Final = Gauge[tuple[str]](
    "recovery_breaker_open",
    "1 while a fleet's commands are held back because they mostly failed.",
    "0 or 1",
    (FLEET,),
    group=RECOVERY,
    over="max",
)
RECOVERY_MODE: Final = Gauge[tuple[str, str]](
    "recovery_mode",
    "1 for what recovery may do in a fleet.",
    "0 or 1",
    (FLEET, _MODE),
    group=RECOVERY,
    over="max",
)

#: All of the above, in their order, which is the order of ``/metrics``. Further families declare
#: theirs beside their code; :data:`pipeline.exporter.EVERYTHING` has them all.
CATALOGUE: Final[tuple[Metric[Any], ...]] = tuple(
    each for each in tuple(globals().values()) if isinstance(each, Metric)
)
