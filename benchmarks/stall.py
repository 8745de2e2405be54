"""Part 6: from the moment a job counts as stuck until the command about it can be read.

A worker that recovers in earnest, a prober and GitHub's API (a real HTTP server that answers from
the truth) beside a steady load of other jobs. Jobs get stuck in three ways, one after the other:

* minted and never started: after its threshold it is asked about, and requeued;
* minted, and its runner is said to be gone: the same without a threshold;
* claimed and never minted: after its threshold its claim is released, and nobody is asked.

What is timed. A rule applies from a known moment on: when the job entered the wrong state, and its
threshold. Both are in the command (``since``) and in the policy; that moment, and not the tick that
finds it, is where the clock starts. It stops when a plain consumer of ``runners.commands``, which
reads committed records only, has the command.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kafka import KafkaConsumer

from benchmarks import latency, machine
from benchmarks.bench import PARTITIONS, Observed, Options, Stage, say, stage, until
from pipeline.simulate.api import ApiJob, ApiRun, FakeGitHub
from tests.support.worker import WorkerProcess
from topics.catalogue import COMMANDS, LIFECYCLE, WEBHOOKS
from topics.keys import job_key
from topics.producer import Producer
from topics.reading import read
from topics.recovery import COMMAND, Command, CommandKind, StallKind

#: Jobs that get stuck in a second.
STUCK_PER_SECOND: Final = 4
#: Fleets that they are of, so that several partitions decide.
STUCK_FLEETS: Final = 24
#: Thresholds, in ticks.
THRESHOLD_TICKS: Final = 2
#: Ticks before the first job gets stuck: caches are cold, the group has just formed.
WARM_UP_TICKS: Final = 2
#: How long to wait for the last commands beyond what they may take, in ticks and seconds.
PATIENCE_TICKS: Final = 8
PATIENCE_S: Final = 30.0
_LONG_S: Final = 7 * 86_400
TOKEN: Final = "t0ken"
#: Ids of the stuck jobs begin here, far from those of the load.
_FIRST: Final = 7_000_000

#: What is commanded about each kind of stall.
WANTED: Final = {
    StallKind.ORPHAN: CommandKind.REQUEUE,
    StallKind.RUNNER_LOST: CommandKind.REQUEUE,
    StallKind.STALE_CLAIM: CommandKind.RELEASE_CLAIM,
}
_KINDS: Final = tuple(WANTED)


@dataclass(frozen=True)
class Came:
    """A command as it was read, at Unix time ``at`` in ms."""

    command: Command
    at: float


class Watch(threading.Thread):
    """Reads the commands about stuck jobs."""

    def __init__(self, bootstrap: str) -> None:
        super().__init__(name="bench-commands", daemon=True)
        self._consumer = KafkaConsumer(
            COMMANDS,
            bootstrap_servers=bootstrap,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            isolation_level="read_committed",
            fetch_max_wait_ms=50,
        )
        self._stopping = threading.Event()
        #: The first of each job; of all others how many.
        self.came: dict[str, Came] = {}
        self.others = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        """Read until told to stop."""
        try:
            while not self._stopping.is_set():
                for records in self._consumer.poll(timeout_ms=100).values():
                    at = time.time() * 1000
                    for record in records:
                        command = read(COMMAND, record.value)
                        mine = command.fleet.startswith("stuck-")
                        if mine and command.job_key not in self.came:
                            self.came[command.job_key] = Came(command, at)
                        else:
                            self.others += 1
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        """Read no more."""
        self._stopping.set()
        self.join()
        self._consumer.close()
        if self.error is not None:
            raise self.error


def measure(options: Options) -> dict[str, Any]:
    """Have jobs get stuck beside a steady load, and time the commands about them."""
    tick_s = options.tick_seconds
    # The load goes on until the last commands are due.
    tail = (THRESHOLD_TICKS + 3) * tick_s
    seconds = WARM_UP_TICKS * tick_s + options.stall_seconds + tail
    load = latency.records(int(options.rate * seconds))
    threshold = THRESHOLD_TICKS * tick_s
    stuck = {f"stuck-{n:02d}": threshold for n in range(STUCK_FLEETS)}
    policies: dict[str, Any] = {
        # Nothing of the load is to be suspected: it tells of a time that is long past.
        "*": {
            "orphan": _LONG_S,
            "stale_claim": _LONG_S,
            "displaced": _LONG_S,
            "stale_queue": _LONG_S,
            "running": _LONG_S,
            "per_hour": 100_000,
            "per_tick": 1_000,
        },
        **{fleet: {"orphan": after, "stale_claim": after} for fleet, after in stuck.items()},
    }
    with stage(options.kind) as place, FakeGitHub(_job, _run, token=TOKEN) as api:
        common = {"github_token": TOKEN, "github_api_url": api.url, "tick_interval": tick_s}
        fold = Observed(
            place, "stall", recovery="live", recovery_policies=json.dumps(policies), **common
        )
        prober = WorkerProcess(
            place.bootstrap,
            role="prober",
            log=place.directory / "prober.log",
            directory=place.directory / "prober",
            partitions=PARTITIONS,
            probes_per_minute=100_000,
            **common,
        )
        try:
            fold.process.start(wait=False)
            prober.start(wait=False)
            fold.process.wait_ready()
            say(f"stall: offering {options.rate:,} events/s for {seconds:.0f} s")
            found = _offer(place, options, load, fold.process)
            return {**found, "questions": len(api.asked("/jobs/"))}
        finally:
            prober.stop()
            fold.process.stop()


def _offer(
    place: Stage, options: Options, load: Sequence[Any], worker: WorkerProcess
) -> dict[str, Any]:
    watch = Watch(place.bootstrap)
    watch.start()
    number = int(options.stall_seconds * STUCK_PER_SECOND)
    kinds: dict[str, StallKind] = {}
    warm_up_s, late = WARM_UP_TICKS * options.tick_seconds, 0.0
    with Producer(place.bootstrap) as producer:
        cpu = machine.cpu_seconds(worker.pid or 0)
        began = time.monotonic()
        for n, record in enumerate(load):
            due = began + n / options.rate
            ahead = due - time.monotonic()
            if ahead > 0.002:
                time.sleep(ahead)
            now = time.monotonic()
            late = max(late, now - due)
            producer.send(record.topic, record.key, record.value, record.headers)
            wanted = int((now - began - warm_up_s) * STUCK_PER_SECOND)
            while len(kinds) < min(number, wanted):
                kind = _KINDS[len(kinds) % len(_KINDS)]
                key, events = _stuck(len(kinds), kind)
                kinds[key] = kind
                for topic, value in events:
                    producer.send(topic, key.encode(), value)
        producer.flush()
        seconds = time.monotonic() - began
    used = machine.cpu_seconds(worker.pid or 0) - cpu
    patience = PATIENCE_TICKS * options.tick_seconds + PATIENCE_S
    try:
        until(lambda: watch.came.keys() >= kinds.keys(), patience, "the commands")
    except TimeoutError:
        say(f"stall: of {len(kinds)} commands {len(watch.came)} came\n{worker.tail(20)}")
    watch.stop()
    return {
        "rate": options.rate,
        "offered_per_second": len(load) / seconds,
        "latest_send_s": late,
        "fold_cpu_us_per_event": used / len(load) * 1e6,
        "tick_s": options.tick_seconds,
        "stuck": len(kinds),
        "commanded": len(watch.came.keys() & kinds.keys()),
        "other_commands": watch.others,
        **_took(watch.came, kinds, options.tick_seconds),
    }


def _took(
    came: Mapping[str, Came], kinds: Mapping[str, StallKind], tick_s: float
) -> dict[str, Any]:
    """Milliseconds to the command, for all and for each kind: since the rule applied, and since
    the tick that found it."""
    due: dict[str, list[float]] = {}
    seen: dict[str, list[float]] = {}
    for key, kind in kinds.items():
        if key not in came:
            continue
        command, at = came[key].command, came[key].at
        if (command.reason, command.command) != (kind, WANTED[kind]):
            raise RuntimeError(f"{key} is {kind}, and was commanded {command!r}")
        wait = 0 if kind is StallKind.RUNNER_LOST else THRESHOLD_TICKS * tick_s * 1000
        due.setdefault(kind.value, []).append(at - command.since - wait)
        seen.setdefault(kind.value, []).append(at - command.opened_at)
    asked = [StallKind.ORPHAN.value, StallKind.RUNNER_LOST.value]
    return {
        "took_ms": _quantiles(_all(due)),
        "found_ms": _quantiles(_all(seen)),
        "asked_took_ms": _quantiles(_all(due, asked)),
        "asked_found_ms": _quantiles(_all(seen, asked)),
        "by_kind": {
            kind: {"took_ms": _quantiles(sorted(each)), "found_ms": _quantiles(sorted(seen[kind]))}
            for kind, each in due.items()
        },
    }


def _all(by_kind: Mapping[str, Sequence[float]], kinds: Sequence[str] = ()) -> list[float]:
    return sorted(ms for kind in kinds or by_kind for ms in by_kind.get(kind, ()))


def _quantiles(took: Sequence[float]) -> dict[str, float] | None:
    if not took:
        return None
    return {
        "p50": took[len(took) // 2],
        "p99": took[min(len(took) - 1, int(len(took) * 0.99))],
        "max": took[-1],
    }


# --- the stuck jobs -------------------------------------------------------------------------------


def _job(number: int) -> ApiJob | None:
    """What GitHub says of them: still queued."""
    return ApiJob("queued", number * 10, created_at=int(time.time() * 1000) - 60_000)


def _run(number: int, attempt: int) -> ApiRun | None:
    return ApiRun("in_progress")


def _stuck(n: int, kind: StallKind) -> tuple[str, list[tuple[str, bytes]]]:
    """The key of a job that is stuck from now on, and the events that say so."""
    number = _FIRST + n
    key = job_key("github", "github.com", number)
    return key, [(topic, json.dumps(value).encode()) for topic, value in _events(key, number, kind)]


def _events(key: str, number: int, kind: StallKind) -> Iterator[tuple[str, dict[str, Any]]]:
    now = int(time.time() * 1000)
    fleet = f"stuck-{number % STUCK_FLEETS:02d}"
    said = {"source": "bench", "occurred_at": now, "received_at": now, "key": key}
    body = {
        "action": "queued",
        "workflow_job": {
            "id": number,
            "run_id": number * 10,
            "run_attempt": 1,
            "status": "queued",
            "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now / 1000)),
            "labels": [fleet],
        },
        "repository": {"full_name": "acme/shop"},
    }
    yield (
        WEBHOOKS,
        {**said, "id": f"{number}-1", "kind": "github.workflow_job", "payload": json.dumps(body)},
    )
    of = {**said, "fleet": fleet, "runner": {"name": f"vm-{number}"}, "repo": "acme/shop"}
    claim = {**of, "job_id": str(number), "claim": "h1"}
    yield LIFECYCLE, {**claim, "id": f"{number}-2", "kind": "job.claimed"}
    if kind is not StallKind.STALE_CLAIM:
        yield LIFECYCLE, {**claim, "id": f"{number}-3", "kind": "job.minted"}
    if kind is StallKind.RUNNER_LOST:
        yield LIFECYCLE, {**of, "id": f"{number}-4", "kind": "runner.gone"}
