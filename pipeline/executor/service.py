"""The loop of an executor: commands from Kafka, each tried until it ends, offsets committed.

    poll ─▶ read ─▶ in hand ─▶ (due? a thread free?) ─▶ attempt ─▶ ended ─▶ commit
                       ▲                                   │
                       └──────────── later ◀───────────────┘

The consumer polls on while commands are tried, so a receiver that is away costs no membership, and
one that fails holds up nothing but its own command. What a rebalance takes away is dropped unless
it was begun: who began a command ends it, wherever its partition is by then.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from kafka import TopicPartition
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from pipeline.executor.doer import HELD, Checks, Doer, Ending, Later, Left, Task
from pipeline.executor.hand import InHand, Place
from pipeline.executor.log import OutcomeLog, reader_options
from pipeline.executor.metrics import NOT_OURS, SHOWN, ExecutorMetrics
from pipeline.executor.outcomes import MOST_ID, now_ms
from pipeline.executor.publisher import Publisher
from pipeline.executor.via import Verdict, Via
from sinks.consumer import Undecodable, absence, make_consumer, position_of
from sinks.membership import Ownership
from sinks.writer import Backoff
from topics.catalogue import COMMANDS
from topics.models import Reason, Unreadable
from topics.reading import read
from topics.recovery import COMMAND, Command, CommandKind, Result

log = logging.getLogger(__name__)

#: Commands in hand beyond which no more are read, and below which reading goes on.
_MANY: Final = 1_000
_FEW: Final = 500
#: How long to finish what is under way after SIGTERM. Seconds.
_FINISH_S: Final = 10.0
#: How long after a commit that failed it is tried again. Seconds.
_COMMIT_AGAIN_S: Final = 1.0
#: How often lag is looked at. Seconds.
_OBSERVE_S: Final = 2.0
#: The loop counts as alive when its last turn is younger than this. Seconds.
_ALIVE_S: Final = 60.0
#: How long to wait after the broker has refused to be asked for records. Seconds.
_BROKER_PAUSE_S: Final = 0.5

#: Shows a command and a note about it: ``expired``, ``dry run``.
Show = Callable[[Command, str], None]


@dataclass(frozen=True)
class ExecutorConfig:
    """How one executor process runs.

    Attributes:
        kafka: options of kafka-python's clients; each takes what it knows.
        only: the commands that it takes; others are for other executors.
        at_once: how many commands are tried at the same time.
        history_s: how far back outcomes are read at the start. Older ones are read when a command
            of that time comes.
        lease_s: see :class:`pipeline.executor.doer.Doer`.
    """

    kafka: Mapping[str, Any]
    group_id: str
    only: frozenset[CommandKind] = frozenset(CommandKind)
    at_once: int = 4
    history_s: float = 3_600.0
    lease_s: float = 45.0
    backoff: Backoff = field(default_factory=lambda: Backoff(0.5, 2.0, 10.0))


@dataclass(frozen=True, slots=True)
class ExecutorStatus:
    """How an executor is doing, for health checks and people."""

    ready: bool
    reason: str
    alive: bool
    via: str
    in_hand: int
    #: Records not done with yet; None while nobody knows.
    lag: int | None


@dataclass(slots=True)
class _Held:
    task: Task
    places: set[Place[TopicPartition]]
    flying: bool = False


class Executor:
    """Executes commands until ``stop`` is set.

    ``show`` instead of ``via`` and ``states``: commands are shown and nothing is done, written or
    known of their outcomes.
    """

    def __init__(
        self,
        config: ExecutorConfig,
        stop: threading.Event,
        via: Via | None = None,
        states: Checks | None = None,
        show: Show | None = None,
    ) -> None:
        assert (show is None) == (via is not None and states is not None)
        self.config = config
        self.metrics = ExecutorMetrics()
        self._via = via.name if via is not None else "print"
        self._show = show
        holder = f"{config.group_id}/{uuid.uuid4().hex}"
        self._stopping = stop
        client = config.group_id
        self._publisher = Publisher(
            config.kafka, client, holder, self._stopping.wait, config.backoff
        )
        self._log = OutcomeLog(config.kafka, f"{client}-outcomes", config.history_s, config.backoff)
        self._doer: Doer | None = None
        if via is not None and states is not None:
            self._doer = Doer(
                via, states, self._log, self._publisher, holder, config.lease_s, config.backoff,
                self._stopping,
            )  # fmt: skip
        self._owned = Ownership()
        self._rebalances = 0
        self._hand: InHand[TopicPartition] = InHand()
        self._held: dict[str, _Held] = {}
        self._due: list[tuple[float, int, str]] = []
        self._number = itertools.count()
        self._landed: queue.SimpleQueue[tuple[str, Ending | Later | Left | BaseException]]
        self._landed = queue.SimpleQueue()
        self._watch = _Watch()

    def run(self) -> None:
        """Run until told to stop; then finish what is under way, commit, and leave the group.

        Raises what is truly unexpected, and ``kafka.errors`` for a wrong configuration. A broker
        that is away is waited for.
        """
        consumer: Any = None
        if self._doer is not None:
            self._log.start()
        try:
            consumer = self._join()
            while consumer is not None and not self._stopping.is_set():
                if self._lost():
                    consumer = self._join_anew(consumer)
                else:
                    self._turn(consumer)
            if consumer is not None:
                self._finish(consumer)
        finally:
            self._stopping.set()
            self._watch.trouble = "stopped"
            if consumer is not None:
                consumer.close(autocommit=False, timeout_ms=5_000)
            self._log.close()
            self._publisher.close()

    def status(self) -> ExecutorStatus:
        """A snapshot. Safe from any thread."""
        watch = self._watch
        reason = watch.trouble
        if not reason and self._doer is not None:
            if self._log.trouble:
                reason = f"outcomes cannot be read: {self._log.trouble}"
            elif self._publisher.trouble:
                reason = f"outcomes cannot be written: {self._publisher.trouble}"
        alive = time.monotonic() - watch.turned < _ALIVE_S
        return ExecutorStatus(
            not reason, reason, alive, self._via, len(self._held), watch.lag
        )  # fmt: skip

    # --- the group ------------------------------------------------------------------------------

    def _join(self) -> Any:
        """A consumer that has subscribed, waiting for the broker. None when stopped meanwhile."""
        options = {
            **reader_options(self.config.kafka, self.config.group_id),
            "group_id": self.config.group_id,
            "max_poll_records": _FEW,
            # What was commanded while nobody listened is told to be expired, not passed over.
            "auto_offset_reset": "earliest",
        }
        attempt = 0
        while not self._stopping.is_set():
            self._watch.turned = time.monotonic()
            try:
                consumer = make_consumer(options)
            except KafkaError as error:
                attempt += 1
                self._watch.trouble = f"Kafka not ready: {type(error).__name__}: {error}"
                log.warning("%s", self._watch.trouble)
                self._stopping.wait(self.config.backoff.delay(attempt))
            else:
                self._watch.absent_since = None
                consumer.subscribe(topics=[COMMANDS], listener=self._owned)
                return consumer
        return None

    def _lost(self) -> bool:
        """Whether we have been no member for so long that only a new connection may help."""
        since = self._watch.absent_since
        return since is not None and time.monotonic() - since > self._session_s() * 4

    def _join_anew(self, consumer: Any) -> Any:
        log.error("%s for long: joining the group anew", self._watch.trouble)
        self._owned.leave()
        consumer.close(autocommit=False, timeout_ms=2_000)
        return self._join()

    def _session_s(self) -> float:
        return float(self.config.kafka.get("session_timeout_ms", 45_000)) / 1000

    def _moved(self) -> None:
        """After a rebalance: drop what is no longer ours, unless it was begun.

        The client reads on where it was in partitions that stay ours, so what was read of them and
        has not ended is still ours to end.
        """
        rebalances, owned = self._owned.handed_out
        if rebalances == self._rebalances:
            return
        self._rebalances = rebalances
        self._log.catch_up()
        for command_id, held in list(self._held.items()):
            held.places = {place for place in held.places if place.where in owned}
            if not held.places and not held.flying and held.task.written is None:
                del self._held[command_id]
        self._hand.moved(place for held in self._held.values() for place in held.places)

    # --- the loop -------------------------------------------------------------------------------

    def _turn(self, consumer: Any) -> None:
        self._watch.turned = time.monotonic()
        fetched = self._poll(consumer)
        self._moved()
        try:
            self._read(consumer, fetched)
        except _Stopped:
            return
        self._land()
        self._launch()
        self._commit(consumer)
        self._brake(consumer)
        self._observe(consumer)

    def _read(self, consumer: Any, fetched: Mapping[Any, Sequence[Any]]) -> None:
        # Also of a partition that has just been taken away: it may come back, with us behind these.
        for where, records in fetched.items():
            for record in records:
                self._take(Place(where, record.offset), record)
        for where in self._owned.partitions():
            position = position_of(consumer, where)
            if position is not None:
                # Also past marks of transactions, which are no records.
                self._hand.reach(where, position)

    def _poll(self, consumer: Any) -> Mapping[Any, Sequence[Any]]:
        now = time.monotonic()
        patience = 0.2
        if any(held.flying for held in self._held.values()):
            patience = 0.01
        elif self._due:
            patience = min(0.2, max(0.0, self._due[0][0] - now) + 0.001)
        try:
            fetched: Mapping[Any, Any] = consumer.poll(timeout_ms=max(1, int(patience * 1000)))
        except KafkaError as error:
            if not error.retriable:
                raise
            self._watch.trouble = f"Kafka failing: {type(error).__name__}: {error}"
            self._stopping.wait(_BROKER_PAUSE_S)
            return {}
        return fetched

    def _take(self, place: Place[TopicPartition], record: Any) -> None:
        self._hand.take(place)
        command = self._command(record)
        if command is None:
            self._hand.done(place)
            return
        age = (now_ms() - command.occurred_at) / 1000
        self._watch.issued = command.occurred_at / 1000
        if command.command not in self.config.only:
            self._count(command, NOT_OURS)
        elif self._show is not None:
            self._show(command, _note(command))
            self._count(command, SHOWN)
        elif command.dry_run:
            self.metrics.dry_run.inc()
            log.info("dry run, %.0f s old, not executed: %s %s", age, command.command,
                     command.job_key or command.fleet)  # fmt: skip
        else:
            self._hold(command, place)
            return
        self._hand.done(place)

    def _command(self, record: Any) -> Command | None:
        """The command in a record; None for one that has its dead letter."""
        try:
            if isinstance(record, Undecodable):
                raise Unreadable(Reason.UNDECODABLE, str(record))
            command = read(COMMAND, record.value)
            if len(command.id) > MOST_ID:
                raise Unreadable(Reason.BAD_ENVELOPE, f"id: longer than {MOST_ID} characters")
        except Unreadable as why:
            log.warning("dead letter for %s:%d:%d: %s: %s", record.topic, record.partition,
                        record.offset, why.reason, why.error)  # fmt: skip
            if not self._publisher.letter(record, why, self._stopping.is_set):
                # Not handled: it is read again by whoever comes next.
                raise _Stopped from None
            self.metrics.dead_letters.labels(why.reason.value).inc()
            return None
        return command

    def _hold(self, command: Command, place: Place[TopicPartition]) -> None:
        held = self._held.get(command.id)
        if held is not None:
            held.places.add(place)
            return
        if not self._log.reaches(command.occurred_at):
            self._log.catch_up(command.occurred_at - 1)
        self._held[command.id] = _Held(Task(command), {place})
        self._when(command.id, 0.0)

    def _when(self, command_id: str, after_s: float) -> None:
        heapq.heappush(self._due, (time.monotonic() + after_s, next(self._number), command_id))

    def _launch(self) -> None:
        if self._doer is None or not self._due or not self._log.current:
            return
        free = self.config.at_once - sum(held.flying for held in self._held.values())
        now = time.monotonic()
        while free > 0 and self._due and self._due[0][0] <= now:
            command_id = heapq.heappop(self._due)[2]
            held = self._held.get(command_id)
            if held is None or held.flying:
                continue
            held.flying = True
            free -= 1
            threading.Thread(
                target=self._fly, args=(command_id, held.task), name="attempt", daemon=True
            ).start()

    def _fly(self, command_id: str, task: Task) -> None:
        assert self._doer is not None
        try:
            self._landed.put((command_id, self._doer.attempt(task)))
        except BaseException as error:
            self._landed.put((command_id, error))

    def _land(self) -> None:
        """Take what attempts have come to. Raises what they could not handle."""
        while True:
            try:
                command_id, found = self._landed.get_nowait()
            except queue.Empty:
                return
            held = self._held[command_id]
            held.flying = False
            if isinstance(found, BaseException):
                raise found
            if isinstance(found, Later):
                if found.why != HELD:
                    self.metrics.retries.inc()
                log.debug("%s: %s, again in %.1f s", command_id, found.why, found.after_s)
                if held.places or held.task.written is not None:
                    self._when(command_id, found.after_s)
                else:
                    del self._held[command_id]
            elif not isinstance(found, Left):
                self._ended(held, found)

    def _ended(self, held: _Held, how: Ending) -> None:
        command = held.task.command
        # The same command again, in another record, was a duplicate of this one.
        extra = len(held.places) - 1
        if how == "duplicate":
            extra += 1
        else:
            self._count(command, how)
        self.metrics.duplicates.inc(max(0, extra))
        for place in held.places:
            self._hand.done(place)
        del self._held[command.id]

    def _count(self, command: Command, result: str) -> None:
        self.metrics.commands.labels(command.command.value, str(result)).inc()

    def _commit(self, consumer: Any) -> None:
        watch, now = self._watch, time.monotonic()
        if watch.uncommitted and now - watch.committed > _COMMIT_AGAIN_S:
            watch.uncommitted = False
            self._hand.forget_commits()
        due = self._hand.due()
        if not due:
            return
        watch.committed = now
        offsets = {where: OffsetAndMetadata(offset, "", -1) for where, offset in due.items()}

        def told(_: Any, response: Any) -> None:
            # On the client's I/O thread.
            if isinstance(response, Exception):
                watch.uncommitted = True
                log.warning("offsets not committed: %s: %s", type(response).__name__, response)

        consumer.commit_async(offsets, callback=told)
        self._hand.committed(due)

    def _brake(self, consumer: Any) -> None:
        if len(self._held) >= _MANY:
            # In every turn: a rebalance brings partitions that are not paused.
            consumer.pause(*consumer.assignment())
        elif len(self._held) < _FEW and consumer.paused():
            consumer.resume(*consumer.paused())

    def _observe(self, consumer: Any) -> None:
        watch, now = self._watch, time.monotonic()
        self.metrics.in_hand.set(len(self._held))
        self.metrics.last_command_age.set(time.time() - watch.issued)
        if now - watch.observed < _OBSERVE_S:
            return
        watch.observed = now
        absent = absence(consumer, self._session_s())
        watch.absent_since = (watch.absent_since or now) if absent else None
        try:
            owned = list(self._owned.partitions())
            ends = consumer.end_offsets(owned, timeout_ms=1_000) if owned else {}
        except KafkaError as error:
            watch.trouble = f"Kafka failing: {type(error).__name__}: {error}"
            watch.lag = None
        else:
            done = self._hand.done_to()
            known = not absent and all(where in done for where in owned)
            watch.lag = sum(max(0, ends[w] - done[w]) for w in owned) if known else None
            watch.trouble = absent
        self.metrics.lag.set(math.nan if watch.lag is None else watch.lag)

    def _finish(self, consumer: Any) -> None:
        """Let attempts under way end, tell of what was begun and waits, and commit."""
        deadline = time.monotonic() + _FINISH_S
        while time.monotonic() < deadline and any(held.flying for held in self._held.values()):
            time.sleep(0.01)
            self._land()
        for held in list(self._held.values()):
            begun = held.task.written is not None and not held.flying
            # A broker that is away is not waited for: it will be told as interrupted.
            if begun and self._doer is not None and not self._publisher.trouble:
                how = self._doer.end(held.task, Verdict(Result.FAILED, "stopped"))
                if not isinstance(how, Left):
                    self._ended(held, how)
        due = self._hand.due()
        if not due:
            return
        try:
            offsets = {where: OffsetAndMetadata(offset, "", -1) for where, offset in due.items()}
            consumer.commit(offsets, timeout_ms=5_000)
        except KafkaError as error:
            log.warning("offsets not committed at the end: %s: %s", type(error).__name__, error)


@dataclass(slots=True)
class _Watch:
    """What health and gauges are told from. Written by the loop."""

    trouble: str = "starting"
    turned: float = field(default_factory=time.monotonic)
    observed: float = 0.0
    #: When the command read last was issued, seconds since the epoch.
    issued: float = math.nan
    lag: int | None = None
    #: When offsets were committed last (monotonic), and whether that failed.
    committed: float = 0.0
    uncommitted: bool = False
    #: Since when (monotonic) we are no member of the group.
    absent_since: float | None = None


class _Stopped(Exception):
    """The process ends in the middle of a batch."""


def _note(command: Command) -> str:
    if command.dry_run:
        return "dry run"
    return "expired" if now_ms() >= command.expires_at else ""
