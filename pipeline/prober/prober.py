"""The loop between ``runners.probes`` and a provider's API: a consumer group of its own.

    poll ─▶ read ─▶ desk ─▶ flight: ask ─▶ evidence ─▶ answer ─▶ commit
                      ▲                │
                      └── in vain ◀────┘

One turn of the loop polls, decides and commits, and waits for nobody; each question is a *flight*,
a thread. A question that was asked in vain is asked again some times, after the pause that its
provider needs, and is then answered with unknown. When many questions wait, partitions are paused.

What is committed is what is before the oldest unanswered probe, so after a crash some are asked
again; what is posted then has the same ids. Partitions that others have now are theirs: what waits
is forgotten, what flies is posted all the same.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from kafka import TopicPartition
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata
from pydantic import ValidationError

from pipeline.prober.desk import Desk, Question, Taken
from pipeline.prober.metrics import ProberMetrics
from pipeline.prober.offsets import Offsets, Partition, Place
from pipeline.prober.post import Post, answer_of
from pipeline.providers.api import Client, Detail, Said, place_of
from sinks.consumer import Undecodable, learn_topics, make_consumer, position_of
from sinks.health import BrokerOutage
from sinks.membership import Membership, consumer_options
from sinks.writer import Abandoned, Backoff, describe
from topics.catalogue import PROBES
from topics.dead_letters import dead_letter
from topics.envelope import EARLIEST_MS
from topics.models import DeadLetter, Reason, Unreadable
from topics.reading import read, unreadable
from topics.recovery import PROBE, Answer, Probe

log = logging.getLogger(__name__)

#: How often a question is asked before the answer is unknown.
MOST_TRIES: Final = 3
#: How often gauges are set, late probes dropped and offsets committed. Seconds.
_OBSERVE_S: Final = 1.0
_COMMIT_S: Final = 0.5
#: How long a host counts as closed that is being asked all that may be asked at once. Seconds.
_FULL_S: Final = 1.0
#: The loop counts as alive when its last turn is younger than this. Seconds.
_ALIVE_S: Final = 60.0
_JOIN_PATIENCE_S: Final = 1.0
_BROKER_PAUSE_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class ProberConfig:
    """How one prober process runs. ``kafka`` holds kafka-python's options."""

    kafka: Mapping[str, Any]
    group_id: str
    #: Questions in flight at once, of each provider's host: one that hangs holds up itself.
    flights: int = 8
    #: Questions that wait before partitions are paused.
    most_waiting: int = 10_000
    #: Records of one poll.
    max_records: int = 500
    #: At shutdown, how long to wait for flights. Seconds.
    close_s: float = 8.0
    rejoin_s: float | None = None
    backoff: Backoff = field(default_factory=Backoff)

    @property
    def client_id(self) -> str:
        """What the broker shows of a member of the group."""
        return self.group_id


@dataclass(frozen=True, slots=True)
class ProberStatus:
    """How the prober is doing, for health checks and people."""

    #: It is a member of its group, and broker and provider do what they are asked.
    ready: bool
    #: Why it is not ready, as a sentence; empty when it is.
    reason: str
    alive: bool
    #: Whom it asks, and as whom; empty for nobody.
    asks: str
    #: Whom it does not ask, and why.
    asks_not: str
    partitions: int
    waiting: int
    flights: int
    paused: bool
    #: Requests that the provider still allows; None: not known.
    budget: int | None


class Prober:
    """Asks what it is told to ask until told to stop.

    Args:
        config: how it runs.
        clients: by where jobs live (:func:`pipeline.providers.api.place_of`); ``otherwise``
            stands for all else.
        metrics: counts; one of its own when None.
    """

    def __init__(
        self,
        config: ProberConfig,
        clients: Mapping[str, Client],
        otherwise: Client,
        metrics: ProberMetrics | None = None,
    ) -> None:
        self.config = config
        self.metrics = metrics if metrics is not None else ProberMetrics()
        self._clients = clients
        self._otherwise = otherwise
        self._stopping = threading.Event()
        self._broker = BrokerOutage()
        self._members = Membership(config)
        self._offsets = Offsets()
        self._desk = Desk(self._lane, config.flights * (len(clients) + 1))
        self._post = Post(
            config.kafka, config.client_id, self._broker, self._stopping, config.backoff
        )
        self._landed: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._rebalances = 0
        self._turned = time.monotonic()
        self._observed = self._committed = 0.0
        self._commit_failed = threading.Event()
        self._paused = False
        self._preparing: str | None = "starting"
        self.metrics.watch(self._remaining)

    # --- for the process ------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Run until ``stop`` is set, then finish what is asked, commit, and leave the group.

        Raises what is truly unexpected (law L7), and ``kafka.errors`` for a wrong configuration.
        """
        consumer: Any = None
        try:
            while not stop.is_set():
                consumer = self._consumer(stop)
                if consumer is None:
                    return
                self._join(consumer, stop)
                while not stop.is_set() and not self._members.lost():
                    self._turn(consumer)
                if not stop.is_set():
                    self._leave(consumer)
            self._finish(consumer)
        finally:
            self._preparing = "stopped"
            self._stopping.set()
            if consumer is not None:
                consumer.close(autocommit=False, timeout_ms=2_000)
            self._post.close()
            for client in self._all():
                client.close()

    def status(self) -> ProberStatus:
        """A snapshot. Safe from any thread."""
        now = time.monotonic()
        absent, broker = self._members.absent, self._broker.now
        trouble = "; ".join(filter(None, (client.trouble() for client in self._all())))
        reason = ""
        if self._preparing is not None:
            reason = self._preparing
        elif not self._members.owned.joined:
            reason = "waiting for the consumer group"
        elif absent is not None:
            reason = f"{absent[1]} for {now - absent[0]:.0f} s"
        elif broker is not None:
            reason = f"Kafka failing for {now - broker[0]:.0f} s: {broker[1]}"
        elif trouble:
            reason = trouble
        return ProberStatus(
            ready=not reason,
            reason=reason,
            alive=now - self._turned < _ALIVE_S
            and not (self._members.hopeless(now) and self._preparing is None),
            asks="; ".join(client.about for client in self._clients.values()),
            asks_not=self._otherwise.about,
            partitions=len(self._members.owned.partitions()),
            waiting=self._desk.questions,
            flights=self._desk.flights,
            paused=self._paused,
            budget=self._remaining(),
        )

    # --- membership -----------------------------------------------------------------------------

    def _consumer(self, stop: threading.Event) -> Any:
        """A consumer, waiting for the broker. None when stopped meanwhile."""
        began, attempt = time.monotonic(), 0
        options = consumer_options(self.config)
        while not stop.is_set():
            self._turned = time.monotonic()
            try:
                consumer = make_consumer(options)
            except KafkaError as error:
                attempt += 1
                waited = time.monotonic() - began
                self._preparing = f"Kafka not ready for {waited:.0f} s: {describe(error)}"
                log.warning("%s", self._preparing)
                stop.wait(self.config.backoff.delay(attempt))
            else:
                self._preparing = None
                return consumer
        return None

    def _join(self, consumer: Any, stop: threading.Event) -> None:
        self._members.begin()
        consumer.subscribe(topics=[PROBES], listener=self._members.owned)
        while not stop.is_set():
            self._turned = time.monotonic()
            try:
                if learn_topics(consumer, _JOIN_PATIENCE_S):
                    return
            except KafkaError as error:
                if not error.retriable:
                    raise
                self._broker.failed(error)
                stop.wait(_BROKER_PAUSE_S)

    def _leave(self, consumer: Any) -> None:
        absent = self._members.absent
        assert absent is not None
        log.error("%s for %.0f s: joining the group anew", absent[1], self._members.rejoin_s)
        self._members.owned.leave()
        # Whoever joins begins with what was committed, also we.
        self._keep(())
        consumer.close(autocommit=False, timeout_ms=2_000)

    def _moved(self) -> None:
        """After a rebalance: drop what waits of partitions that others have now.

        While it goes on all partitions are revoked, and most come back. The client reads on where
        it was in those, so what was read of them is still ours to answer.
        """
        rebalances, ours = self._members.owned.handed_out
        if rebalances != self._rebalances:
            self._rebalances = rebalances
            self._keep(ours)

    def _keep(self, ours: Iterable[TopicPartition]) -> None:
        gone = self._offsets.keep(Partition(*where) for where in ours)
        if gone:
            self._desk.forget(gone)

    def _due(self) -> dict[Partition, int]:
        """What is to be committed of partitions that are ours at this moment."""
        ours = self._members.owned.partitions()
        return {where: at for where, at in self._offsets.due().items() if where in ours}

    # --- the loop -------------------------------------------------------------------------------

    def _turn(self, consumer: Any) -> None:
        self._turned = time.monotonic()
        fetched = self._poll(consumer)
        now = time.monotonic()
        self._members.attend(consumer, now)
        self._moved()
        self._take(consumer, fetched)
        self._land()
        if now - self._observed >= _OBSERVE_S:
            self._observed = now
            self._observe()
        self._depart()
        self._brake(consumer)
        if now - self._committed >= _COMMIT_S:
            self._committed = now
            self._commit(consumer)

    def _poll(self, consumer: Any) -> Mapping[Any, Any]:
        """What has arrived; nothing while the broker is away."""
        if self._members.absent is not None:
            patience = _JOIN_PATIENCE_S
        elif self._desk.flights:
            patience = 0.01
        else:
            patience = 0.1 if self._desk.questions else 0.2
        try:
            fetched: Mapping[Any, Any] = consumer.poll(timeout_ms=int(patience * 1000))
        except KafkaError as error:
            if not error.retriable:
                raise
            self._broker.failed(error)
            self._stopping.wait(_BROKER_PAUSE_S)
            return {}
        return fetched

    def _take(self, consumer: Any, fetched: Mapping[Any, Any]) -> None:
        now = _now()
        # Also of partitions that are just revoked: they may come back, with us behind these.
        for where in self._members.owned.handed_out[1]:
            for record in fetched.get(where, ()):
                place = Place(Partition(*where), record.offset)
                self._offsets.begin(place)
                if not self._read(record, place, now):
                    self._offsets.finish(place)
        for where in self._members.owned.partitions():
            position = position_of(consumer, where)
            if position is not None:
                self._offsets.read(Partition(*where), position)

    def _read(self, record: Any, place: Place, now: int) -> bool:
        """Take a record in; whether it is unfinished now."""
        try:
            if isinstance(record, Undecodable):
                raise Unreadable(Reason.UNDECODABLE, str(record))
            probe = read_probe(record.value)
        except Unreadable as why:
            letter = dead_letter("prober", record, why, now)
            self._fly("letter", self._bury, letter, place)
            return True
        taken = self._desk.take(probe, place, now)
        if taken is Taken.EXPIRED:
            self.metrics.expired.inc()
        return taken is Taken.WAITS

    def _depart(self) -> None:
        """Ask what may be asked now."""
        while (question := self._desk.next(self._opens)) is not None:
            self._fly("probe", self._ask, question, tuple(question.probes.values()))

    def _land(self) -> None:
        """Take in what has come of flights. Raises what one could not handle."""
        while True:
            try:
                landed = self._landed.get_nowait()
            except queue.Empty:
                return
            landed()

    def _observe(self) -> None:
        late, places = self._desk.expire(_now())
        for place in places:
            self._offsets.finish(place)
        self.metrics.expired.inc(late)
        self.metrics.waiting.set(self._desk.probes())
        oldest = self._desk.oldest()
        self.metrics.oldest.set(0 if oldest is None else max(0, _now() - oldest) / 1000)
        if self._broker.now is not None and self._members.absent is None:
            # An acknowledged commit is the sign that the broker is there again.
            self._commit_failed.set()

    def _brake(self, consumer: Any) -> None:
        """Stop fetching while many wait; poll goes on regardless."""
        if self._desk.questions >= self.config.most_waiting:
            self._paused = True
            # Again in every turn: a rebalance brings partitions that are not paused.
            consumer.pause(*consumer.assignment())
        elif self._paused and self._desk.questions < self.config.most_waiting // 2:
            consumer.resume(*consumer.paused())
            self._paused = False

    def _commit(self, consumer: Any) -> None:
        if self._commit_failed.is_set():
            self._commit_failed.clear()
            self._offsets.forget_commits()
        due = self._due()
        if due:
            self._offsets.committed(due)
            consumer.commit_async(_offsets(due), callback=self._on_commit)

    def _on_commit(self, offsets: Any, response: Any) -> None:
        """Called on the client's I/O thread. A commit that failed is made good by the next one."""
        if isinstance(response, Exception):
            self._commit_failed.set()
            self._broker.failed(response)
            log.warning("offsets not committed: %s", describe(response))
        else:
            self._broker.over()

    def _finish(self, consumer: Any) -> None:
        """Wait for what is asked, within ``close_s``, and commit."""
        deadline = time.monotonic() + self.config.close_s
        while self._desk.flights and (left := deadline - time.monotonic()) > 0:
            try:
                self._landed.get(timeout=left)()
            except queue.Empty:
                break
        if self._desk.flights:
            log.warning("closing with %d questions unanswered; they are asked again next time",
                        self._desk.flights)  # fmt: skip
        self._moved()
        self._offsets.forget_commits()
        due = self._due()
        if due:
            try:
                consumer.commit(_offsets(due), timeout_ms=2_000)
            except KafkaError as error:
                log.warning("offsets not committed at close: %s", describe(error))

    # --- flights (threads of their own) ---------------------------------------------------------

    def _fly(self, name: str, work: Callable[..., None], *what: Any) -> None:
        def flight() -> None:
            try:
                work(*what)
            except Abandoned:
                log.debug("a flight was given up; it is read again next time")
            except BaseException as error:
                self._landed.put(partial(_raise, error))

        threading.Thread(target=flight, name=f"prober-{name}", daemon=True).start()

    def _ask(self, question: Question, probes: tuple[Probe, ...]) -> None:
        began = time.monotonic()
        asked = min(probes, key=lambda each: (each.since, each.id))
        try:
            said = self._client(asked).ask(asked)
        except Exception:
            log.exception("asking about %s failed", asked.key)
            said = Said(Answer.UNKNOWN, detail=Detail.UNEXPECTED)
        if said.again and question.tries + 1 < MOST_TRIES:
            self._landed.put(partial(self._in_vain, question))
            return
        said = self._post.answers(probes, said, _now())
        self.metrics.probes.labels(said.answer.value).inc(len(probes))
        self.metrics.seconds.observe(time.monotonic() - began)
        self._landed.put(partial(self._answered, question))

    def _bury(self, letter: DeadLetter, place: Place) -> None:
        self._post.letter(letter)
        self.metrics.dead_letters.labels(letter.reason.value).inc()
        log.warning("dead letter for %s: %s: %s", letter.id, letter.reason, letter.error)
        self._landed.put(partial(self._offsets.finish, place))

    # --- landings (in the loop) -----------------------------------------------------------------

    def _in_vain(self, question: Question) -> None:
        self.metrics.retries.inc()
        self._desk.again(question)

    def _answered(self, question: Question) -> None:
        for place in self._desk.done(question):
            self._offsets.finish(place)

    # --- clients --------------------------------------------------------------------------------

    def _all(self) -> list[Client]:
        return [*self._clients.values(), self._otherwise]

    def _client(self, probe: Probe) -> Client:
        return self._clients.get(place_of(probe.key), self._otherwise)

    def _lane(self, probe: Probe) -> str:
        """Whose budget it takes from: where the job lives, and what the client says."""
        return f"{place_of(probe.key)}/{self._client(probe).lane(probe)}"

    def _opens(self, lane: str, flights: int) -> float:
        # A host is canonical here, so it holds no slash.
        place, _, of = lane.partition("/")
        if self._desk.aloft(f"{place}/") >= self.config.flights:
            return _FULL_S
        return self._clients.get(place, self._otherwise).opens(of, flights)

    def _remaining(self) -> int | None:
        known = (client.remaining() for client in self._all())
        return min((left for left in known if left is not None), default=None)


def read_probe(value: bytes | None) -> Probe:
    """A probe that can be answered. Raises Unreadable for whatever else."""
    probe = read(PROBE, value)
    try:
        answer_of(probe, Said(Answer.UNKNOWN), EARLIEST_MS)
    except ValidationError as error:
        raise unreadable(error) from None
    return probe


def _offsets(due: Mapping[Partition, int]) -> dict[TopicPartition, OffsetAndMetadata]:
    return {TopicPartition(*where): OffsetAndMetadata(at, "", -1) for where, at in due.items()}


def _now() -> int:
    return int(time.time() * 1000)


def _raise(error: BaseException) -> None:
    raise error
