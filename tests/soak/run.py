"""One mode of the soak from its first job to the replay, and what came of it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec
from kafka import KafkaProducer, TopicPartition

from pipeline.recovery import RecoveryPolicy
from tests.soak.day import Day, Job, Pace
from tests.soak.plant import PARTITIONS, REPLAY, Plant
from tests.support import evidence
from tests.support.brokers import broker
from tests.support.clock import FastClock
from tests.support.receivers import Receiver
from tests.support.stall_world import HOUR, MINUTE
from topics.catalogue import COMMANDS, JOB_STATES, OUTCOMES, PROBES
from topics.reading import read
from topics.recovery import COMMAND, OUTCOME, Result

#: So long ago the clock begins: it must not overtake the broker's.
_AGO_S: Final = 12 * 3_600.0
_RULES: Final = RecoveryPolicy()
#: A stuck job is free so long after it was suspected, of the day: with the provider's and the
#: dispatcher's outages. After a command that came to nothing it also waits for its cool-down.
WITHIN_MS: Final = HOUR
#: And so much more, in real seconds, for what no clock of ours makes shorter: the longest pause of
#: the prober after an outage; with kills the groups' time-outs, and starts of processes.
WITHIN_S, WITHIN_KILLS_S = 60.0, 60.0
#: From when on a job with each fault is suspected, ms of the day.
SUSPECTED: Final = {
    "orphan": _RULES.orphan_ms,
    "stale_claim": _RULES.stale_claim_ms,
    "host_gone": MINUTE,
    "displaced": MINUTE,
    "missed_by_autoscaler": _RULES.stale_queue_ms,
    "ghost": _RULES.stale_queue_ms,
    "lost_completed": _RULES.running_ms,
}


@dataclass(frozen=True)
class Mode:
    """What is done to the day. Times real seconds, the lag in minutes of the clock."""

    name: str
    workers: int = 1
    kill_every: float = 0.0
    lag_minutes: float = 0.0

    def within_ms(self, pace: Pace) -> int:
        """After so long, on the clock, a suspected job must be free."""
        real_s = WITHIN_S + (WITHIN_KILLS_S if self.kill_every else 0.0)
        return int(pace.ms(WITHIN_MS) + real_s * 1000 * pace.speed + self.lag_minutes * MINUTE)


@dataclass
class Report:
    """What came of a mode. ``failures`` is empty when all is as it must be."""

    mode: str
    figures: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def line(self) -> str:
        """One line for people."""
        told = ", ".join(f"{name} {value}" for name, value in self.figures.items())
        return f"{self.mode}: {'FAILED' if self.failures else 'ok'}: {told}"


class _State(msgspec.Struct):
    key: str
    status: str
    conclusion: str | None = None
    recovery: dict[str, Any] | None = None


class Follower(threading.Thread):
    """Tells the day what is served."""

    def __init__(self, kafka: str, day: Day) -> None:
        super().__init__(daemon=True)
        self._kafka, self._day = kafka, day
        self._closing = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        """Read on until closed."""
        try:
            decode = msgspec.json.Decoder(_State).decode
            consumer = evidence.consumer(self._kafka)
            consumer.assign([TopicPartition(JOB_STATES, n) for n in range(PARTITIONS)])
            consumer.seek_to_beginning()
            while not self._closing.is_set():
                for records in consumer.poll(200).values():
                    for record in records:
                        if record.value is not None:
                            state = decode(record.value)
                            stalls = (state.recovery or {}).get("stalls")
                            told = state.conclusion or ""
                            self._day.serve(state.key, state.status, told, bool(stalls))
            consumer.close()
        except BaseException as error:
            self.error = error

    def close(self) -> None:
        """Stop, and raise what failed."""
        self._closing.set()
        self.join()
        if self.error is not None:
            raise self.error


def soak(
    mode: Mode,
    folder: Path,
    jobs: int,
    hours: float,
    seed: int,
    pace: Pace,
    say: Callable[[str], None] = lambda text: None,
) -> Report:
    """Play the day in a mode on a broker of its own."""
    clock = FastClock.ago(_AGO_S, pace.speed)
    began = time.monotonic()
    report = Report(mode.name)
    with broker(folder) as kafka:
        producer = KafkaProducer(bootstrap_servers=kafka.bootstrap, linger_ms=5, acks="all")

        def post(topic: str, key: str, said: dict[str, Any], at: int) -> None:
            value = msgspec.json.encode(said)
            producer.send(topic, key=key.encode(), value=value, timestamp_ms=at)

        day = Day(seed, jobs, hours, clock, pace, post)
        with Receiver(day.hook) as dispatcher, day.api:
            plant = Plant(
                kafka.bootstrap, folder, clock, pace, day.api.url, dispatcher.url,
                mode.workers, lagging=bool(mode.lag_minutes),
            )  # fmt: skip
            with plant:
                day.begin()
                follower = Follower(kafka.bootstrap, day)
                follower.start()
                _live(day, plant, mode, pace, Random(seed), say)
                producer.flush()
                plant.wait_drained()
                follower.close()
                say("verify")
                _compare(report, "verify", plant.verify())
            took = time.monotonic() - began
            _judge(report, day, plant, mode, pace, took)
            say("replay")
            try:
                _replay(report, plant, kafka.bootstrap)
            except (AssertionError, TimeoutError) as error:
                # What the day came to is told all the same.
                report.failures.append(f"the replay failed: {error}")
        producer.close()
    return report


def _live(
    day: Day, plant: Plant, mode: Mode, pace: Pace, chance: Random, say: Callable[[str], None]
) -> None:
    """Let the day pass, and after it all that is under way."""
    next_kill = time.monotonic() + mode.kill_every
    lag_ms = mode.lag_minutes * MINUTE
    lag_at = day.clock.ms() + max(0.0, (day.arrived_at - day.clock.ms()) * 0.4 - lag_ms / 2)
    told = time.monotonic()
    patience = None
    while True:
        day.turn()
        now = time.monotonic()
        over = day.now > day.arrived_at
        left = day.unsettled() if over or now - told > 30 else []
        if over and not left:
            return
        if over:
            patience = patience or now + 120 + pace.ms(6 * HOUR) / 1000 / pace.speed
            if now > patience:
                return
        if now - told > 30:
            told = now
            say(f"{len(day.jobs)} jobs, {len(left)} unsettled, {dict(plant.count)}, "
                f"{len(day.effects)} commands done, {len(day.wrong)} wrong")  # fmt: skip
        if mode.kill_every and now > next_kill and not over:
            next_kill = now + mode.kill_every
            plant.kill(chance)
        if lag_ms and day.now > lag_at:
            lag_at = 1 << 62
            plant.sleep(lag_ms / 1000 / pace.speed)
        time.sleep(0.2 if over else 0.01)


def _judge(report: Report, day: Day, plant: Plant, mode: Mode, pace: Pace, took: float) -> None:
    kafka = plant.kafka
    commands = [read(COMMAND, each.value) for each in evidence.read_topic(kafka, COMMANDS)]
    outcomes = [read(OUTCOME, each.value) for each in evidence.read_topic(kafka, OUTCOMES)]
    results = Counter(each.result.value for each in outcomes if each.result is not None)
    true = [job for job in day.jobs.values() if job.stuck_at is not None]
    freed = [job for job in true if job.freed_at is not None]
    person = sum(job.person for job in day.jobs.values())
    lost = [job for job in true if job.freed_at is None and not job.person]
    unserved = [job for job in day.jobs.values() if not job.settled]
    waits = {job.number: _waited(job, pace) for job in freed}
    within = mode.within_ms(pace)
    tries = Counter(command.job_key for command in commands)
    tries.subtract(each.job_key for each in outcomes if each.result is Result.REFUSED)
    ids = {command.id for command in commands}
    alive = sum(alive for job in day.jobs.values() for _, alive in job.hits)
    report.figures |= {
        "jobs": len(day.jobs),
        "stalls true": len(true),
        "found": sum(job.found for job in true),
        "recovered": sum(job.fault not in ("ghost", "lost_completed") for job in freed),
        "closed": sum(job.fault in ("ghost", "lost_completed") for job in freed),
        "left to a person": person,
        "lost": len(lost),
        "freed after suspicion (min of the day, p50 p99 max)": _quantiles(
            [ms * pace.squeeze for ms in waits.values()]
        ),
        "commands": len(ids),
        "published again": len(commands) - len(ids),
        "on live jobs": alive,
        "effects": len(day.effects),
        "duplicates": sum("came again" in each for each in day.wrong),
        "repeated after a lost answer": day.count["repeated"],
        **{name: results[name] for name in ("done", "refused", "failed", "expired", "cannot")},
        "asked about": len({each.key for each in evidence.read_topic(kafka, PROBES)}),
        "kills": plant.count["kills"],
        "lags": plant.count["lags"],
        "ended by themselves": plant.count["ended by themselves"],
        "took (s)": round(took),
    }
    report.failures += day.wrong
    report.failures += [
        f"{waits[job.number] / MINUTE:.0f} min of the clock after it was suspected: {job}"
        for job in freed
        if waits[job.number] > within + pace.ms(_cooling(job, tries[job.key] - 1))
    ]
    report.failures += [f"not recovered: {job}" for job in lost]
    report.failures += [f"not as it is: {job}" for job in unserved if job not in lost]
    if plant.count["ended by themselves"] and not mode.kill_every and not mode.lag_minutes:
        report.failures.append("processes ended by themselves")


def _waited(job: Job, pace: Pace) -> int:
    """How long after it was suspected a job was freed, ms of the clock."""
    assert job.stuck_at is not None
    assert job.freed_at is not None
    return job.freed_at - job.stuck_at - pace.ms(SUSPECTED[job.fault])


def _cooling(job: Job, failed: int) -> int:
    """How long the rules wait after so many commands that came to nothing, ms of the day."""
    least = _RULES.stale_queue_ms if job.fault == "missed_by_autoscaler" else 0
    waits = (min(_RULES.cool_down_ms << n, _RULES.cool_down_most_ms) for n in range(failed))
    return sum(max(least, wait) for wait in waits)


def _quantiles(waits: list[float]) -> str:
    found = sorted(waits) or [0.0]
    at = (len(found) // 2, len(found) * 99 // 100, len(found) - 1)
    return " ".join(f"{found[n] / MINUTE:.0f}" for n in at)


def _compare(report: Report, name: str, found: dict[str, Any]) -> None:
    different = sum(each["different"] for each in found["compared"].values())
    report.figures[name] = f"{different} different of " + ", ".join(
        f"{each['folded']} {what}" for what, each in found["compared"].items()
    )
    if not found["equal"]:
        report.failures += [f"{name}: {each}" for each in found["differences"]]
        report.failures.append(f"{name}: not equal")


def _replay(report: Report, plant: Plant, kafka: str) -> None:
    before = {topic: _records(kafka, topic) for topic in (PROBES, COMMANDS)}
    with plant.replayed():
        for topic, records in before.items():
            more = _records(kafka, topic) - records
            report.figures[f"replay's {topic.rpartition('.')[2]}"] = more
            if more:
                report.failures.append(f"the replay published {more} records on {topic}")
        _compare(report, "verify of the replay", plant.verify(REPLAY))


def _records(kafka: str, topic: str) -> int:
    return sum(1 for _ in evidence.read_topic(kafka, topic))
