"""Kafka away under load: what the gateway refused comes again, and jobs are as if nothing had been.

The tests look away for as long as a dozen deliveries take. For a longer look::

    RUNNERSTREAM_TEST_BROKER=kafka python -m tests.support.outage --seconds 60 --per-second 60
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pipeline.local.process import LOOPBACK
from pipeline.providers.github_hooks import GitHubHook
from pipeline.simulate.deliveries import FakeHook, HookedGitHub, Sent
from tests.support import evidence
from tests.support.brokers import Broker, broker, describe, kind
from tests.support.gateways import SECRET, bodies, ready, serve, until
from tests.support.redelivering import NAMED, Load, calls, redelivering
from tests.support.worker import WorkerProcess
from topics.apply import apply
from topics.catalogue import JOB_STATES, catalogue

PARTITIONS: Final = 3


@dataclass
class Seen:
    """What was seen.

    Attributes:
        first: deliveries, redeliveries left out; ``refused`` of them were not answered 2xx.
        again: redeliveries by GUID.
        unwritten: answered 2xx and not on the topic.
        missing: deliveries that never came.
        wrong: jobs that are not as they would be if nothing had been lost, in words.
        back_s: from when Kafka was back until all had come.
    """

    first: int = 0
    refused: set[str] = field(default_factory=set)
    again: Counter[str] = field(default_factory=Counter)
    found: int = 0
    unwritten: int = 0
    missing: int = 0
    jobs: int = 0
    wrong: list[str] = field(default_factory=list)
    back_s: float = 0.0


def came(sent: Sent) -> bool:
    """Whether an attempt was answered 2xx."""
    return sent.code is not None and 200 <= sent.code < 300


def missing(hook: FakeHook) -> set[str]:
    """GUIDs that never came."""
    sent = hook.sent
    return {each.guid for each in sent} - {each.guid for each in sent if came(each)}


def again(hook: FakeHook) -> Counter[str]:
    """How often each GUID was sent again."""
    return Counter(each.guid for each in hook.sent if each.redelivery)


def stood_still(kafka: Broker, enough: Callable[[], Any]) -> None:
    """The broker stands still until that is so."""
    assert kafka.pid is not None
    os.kill(kafka.pid, signal.SIGSTOP)
    try:
        enough()
    finally:
        os.kill(kafka.pid, signal.SIGCONT)


def killed(kafka: Broker, enough: Callable[[], Any]) -> None:
    """The broker is not there until that is so."""
    kafka.kill()
    try:
        enough()
    finally:
        kafka.start()


def outage(
    kafka: Broker,
    directory: Path,
    away: Callable[[Broker, Callable[[], Any]], None],
    enough: Callable[[FakeHook], Any],
    senders: int = 4,
    per_second: float = 40,
    beside: bool = False,
) -> Seen:
    """Load, Kafka ``away`` until ``enough``, load again; then until all is well.

    ``beside``: the role ``redeliver`` runs all the time, else only afterwards.
    """
    seen = Seen()
    with ExitStack() as stack:
        served = stack.enter_context(serve(kafka.bootstrap, deadline_s=1.0))
        url = f"http://{LOOPBACK}:{served.port}/webhooks/github"
        hook = stack.enter_context(FakeHook(url, SECRET))
        api = stack.enter_context(HookedGitHub({"/app/hook": hook}, app=NAMED))
        ready(served)
        process = redelivering(
            kafka.bootstrap, [GitHubHook("github.com", "app", calls(api.url))], group="outage"
        )
        service = stack.enter_context(process) if beside else None
        load = Load(hook, senders, per_second)
        with load.running():
            until(lambda: sum(map(came, hook.sent)) > 30)
            away(kafka, lambda: enough(hook))
            back = time.monotonic()
            before = sum(map(came, hook.sent))
            until(lambda: sum(map(came, hook.sent)) > before + 30)
        first = [each for each in hook.sent if not each.redelivery]
        seen.first = len(first)
        seen.refused = {each.guid for each in first if not came(each)}
        service = service or stack.enter_context(process)
        until(lambda: not missing(hook), 600)
        seen.back_s = time.monotonic() - back
        until(lambda: service.metrics.open._value.get() == 0 and service.status().ready, 120)
        seen.found = int(service.metrics.found._value.get())
    seen.again, seen.missing = again(hook), len(missing(hook))
    seen.unwritten = len({s.body for s in hook.sent if came(s)} - set(bodies(kafka.bootstrap)))
    _jobs(kafka, directory, load.jobs, seen)
    return seen


def _jobs(kafka: Broker, directory: Path, jobs: dict[int, int], seen: Seen) -> None:
    """Have a worker fold it all, and compare each job with what was told of it."""
    with WorkerProcess(
        kafka.bootstrap, partitions=PARTITIONS, directory=directory,
        log=directory / "worker.log", github_secrets=SECRET.decode(),
    ) as worker:  # fmt: skip
        worker.wait_ready()

        def states() -> dict[str, Any]:
            found = evidence.job_states(evidence.compacted(kafka.bootstrap, JOB_STATES))
            done = {key: each for key, each in found.items() if each["status"] == "completed"}
            return done if len(done) >= len(jobs) else {}

        known = until(states, 120)
    seen.jobs = len(jobs)
    for job, begun in jobs.items():
        state = known.get(f"github:github.com:{job}")
        if state is None:
            seen.wrong.append(f"{job} is unknown")
            continue
        timings = state["timings"]
        told = (
            state["conclusion"], state["runner"]["name"],
            *(timings[name].get("ms") for name in ("queue", "run", "total")),
            *(state[name] for name in ("queued_at", "started_at", "completed_at")),
        )  # fmt: skip
        right = ("success", f"runner-{job}", 7_000, 30_000, 37_000,
                 begun, begun + 7_000, begun + 37_000)  # fmt: skip
        if told != right:
            seen.wrong.append(f"{job}: {told} instead of {right}")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long Kafka is away")
    parser.add_argument("--per-second", type=float, default=60.0, help="deliveries")
    options = parser.parse_args()
    print(describe())
    with tempfile.TemporaryDirectory() as scratch, broker(Path(scratch) / "broker") as kafka:
        apply({"bootstrap_servers": kafka.bootstrap}, catalogue(partitions=PARTITIONS))
        # The embedded broker forgets everything when it is killed.
        away = killed if kind() == "kafka" else stood_still
        # Each sender waits for the gateway's deadline while Kafka is away.
        seen = outage(kafka, Path(scratch), away, lambda hook: time.sleep(options.seconds),
                      senders=max(4, int(options.per_second)), per_second=options.per_second,
                      beside=True)  # fmt: skip
    print(f"Kafka away for {options.seconds:g} s ({away.__name__}), {options.per_second:g} "
          "deliveries a second")  # fmt: skip
    print(f"deliveries: {seen.first}; refused: {len(seen.refused)}; asked for again: "
          f"{len(seen.again)}, {sum(seen.again.values())} times")  # fmt: skip
    print(f"2xx without a record: {seen.unwritten}; never came: {seen.missing}; all had come "
          f"{seen.back_s:.0f} s after Kafka was back")  # fmt: skip
    print(f"jobs: {seen.jobs}; not as if nothing had been lost: {len(seen.wrong)}")
    print("\n".join(seen.wrong[:10]))
    return int(bool(seen.unwritten or seen.missing or seen.wrong))


if __name__ == "__main__":
    raise SystemExit(main())
