"""Telemetry from programs and shells to ``runners.events``, on a real broker."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import NewTopic

from pipeline.agents.normalise import telemetry_record
from pipeline.cli import main
from pipeline.commands.event_fields import KINDS, is_required
from tests.support import PATIENCE, brokers
from tests.test_said import sample
from topics.apply import apply
from topics.attempts import Attempts
from topics.batching import Batching, Drop, Parcel, Trigger
from topics.catalogue import EVENTS, LIFECYCLE, catalogue
from topics.emitter import Emitter
from topics.events import EVENT, MODELS, Event
from topics.producer import Producer
from topics.reading import read

NOWHERE = "127.0.0.1:1"
PARTITIONS = 2
LONG = 15 * PATIENCE
ONCE = Counter(dict.fromkeys(MODELS, 1))
#: Goes only when asked, and comes back quickly.
ASKED = Batching(
    interval_s=900, max_latency_s=900, urgent_s=900, batch_records=100_000, backoff_s=0.05,
    backoff_max_s=0.2,
)  # fmt: skip


def until(true: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < end, f"waited for {what}"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[brokers.Broker]:
    with brokers.broker(tmp_path_factory.mktemp("broker"), "embedded") as running:
        apply({"bootstrap_servers": running.bootstrap}, catalogue(partitions=PARTITIONS))
        yield running


def told(broker: brokers.Broker, source: str, topic: str = EVENTS) -> list[Any]:
    """What is on the topic of one source, by the models; its key is the pipeline's."""
    where = [TopicPartition(topic, p) for p in range(PARTITIONS)]
    consumer = KafkaConsumer(
        bootstrap_servers=broker.bootstrap, auto_offset_reset="earliest", max_poll_records=100_000
    )
    try:
        consumer.assign(where)
        ends = consumer.end_offsets(where)
        found = []
        while any(consumer.position(tp) < ends[tp] for tp in where):
            for records in consumer.poll(timeout_ms=500).values():
                found += records
    finally:
        consumer.close()
    if topic == LIFECYCLE:
        return [each for each in map(_value, found) if each["source"] == source]
    events = []
    for record in found:
        output, notes = telemetry_record(record.value)
        assert (record.key, notes) == (output.key, [])
        events.append(read(EVENT, record.value))
    return [event for event in events if event.source == source]


def _value(record: Any) -> Any:
    return json.loads(record.value)


def waiting(emitter: Emitter) -> list[tuple[str, dict[str, Any], bool]]:
    """What it holds: topic, value and whether it is urgent."""
    queues: Any = emitter._batcher._waiting
    parcels = sorted((*queues[True], *queues[False]), key=lambda each: each.seq)
    return [(each.topic, json.loads(each.value), each.urgent) for each in parcels]


@pytest.fixture
def idle() -> Iterator[Emitter]:
    """An emitter whose Kafka is nowhere."""
    emitter = Emitter(
        NOWHERE, source="host-1", fleet="linux", runner="vm-1", attempt_s=0.2, batching=ASKED,
        secrets=["hunter2 and more"], close_s=0,
    )  # fmt: skip
    yield emitter
    emitter.close()


# --- without a broker -----------------------------------------------------------------------------


def test_one_emitter_tells_both(idle: Emitter) -> None:
    assert idle.emit("task.finished", task_id="7", result="success", duration_ms=41)
    assert idle.emit("job.completed", job_id=7, conclusion="success")
    assert idle.emit("runner.poll", result="empty")
    assert idle.emit("runner.poll", result="error", urgent=True)
    assert idle.post(MODELS["pool.sample"](
        id="x", kind="pool.sample", source="s", occurred_at=1_790_000_000_000,
        received_at=1_790_000_000_000, fleet="f", idle=3,
    ))  # fmt: skip
    ended, completed, empty, failed, posted = waiting(idle)
    assert [each[0] for each in (ended, completed, empty)] == [EVENTS, LIFECYCLE, EVENTS]
    assert [each[2] for each in (ended, completed, empty, failed, posted)] == [
        True, True, False, True, False,
    ]  # fmt: skip
    assert (ended[1]["runner"], completed[1]["runner"]) == ("vm-1", {"name": "vm-1"})
    assert posted[1]["idle"] == 3


def test_what_makes_no_telemetry_is_counted_and_no_exception(idle: Emitter) -> None:
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("task.finished", {}),
        ("pool.sample", {"idle": -1}),
        ("pool.sample", {"idel": 1}),
        ("pool.sample", {"fleet": 7}),
        ("pool.sample", {"occurred_at": 1_790_000_000}),
        ("pool.sampled", {}),
        ("dispatch.request", {"outcome": "nearly"}),
    ]
    for kind, said in wrong:
        assert idle.emit(kind, **said) is False
        with pytest.raises(ValueError):  # noqa: PT011 - each says something else
            idle.event(kind, **said)
    assert idle.emit("runner.poll", runner="hunter2 and more") is False
    assert idle.emit("runner.poll", error_code="hunter2 and more") is True
    assert idle.stats().dropped[Drop.INVALID] == len(wrong)
    assert idle.stats().dropped[Drop.SECRET] == 1
    assert waiting(idle)[0][1]["error_code"] == "***"


def test_levels_that_wait_are_the_newest_only(idle: Emitter) -> None:
    asked: Counter[str] = Counter()

    def level(name: str) -> dict[str, Any] | None:
        asked[name] += 1
        if name == "raises":
            raise RuntimeError("not now")
        if name == "silent":
            return None
        return {"running": asked[name]} if name == "status" else {"pool": name, "idle": asked[name]}

    idle.sample("runner.status", lambda: level("status"), every_s=0.01)
    end = idle.sample("pool.sample", lambda: level("a"), every_s=0.01)
    idle.sample("pool.sample", lambda: level("b"), every_s=0.02)
    idle.sample("pool.sample", lambda: level("raises"), every_s=0.01)
    idle.sample("pool.sample", lambda: level("silent"), every_s=0.01)
    until(lambda: min(asked[each] for each in ("status", "a", "b", "raises", "silent")) > 3, "all")
    end()
    after = asked["a"]
    until(lambda: asked["status"] > after + 10, "more")
    assert asked["a"] <= after + 1  # one may be under way
    found = {(each["kind"], each.get("pool", "")): each for _, each, _ in waiting(idle)}
    assert set(found) == {("runner.status", ""), ("pool.sample", "a"), ("pool.sample", "b")}
    assert len(waiting(idle)) == 3
    assert found["runner.status", ""]["runner"] == "vm-1"
    assert found["pool.sample", "a"]["idle"] >= after - 1
    assert idle.stats().dropped[Drop.INVALID] >= 3
    assert idle.stats().coalesced > 10
    with pytest.raises(ValueError, match="no kind 'x'"):
        idle.sample("x", dict)
    with pytest.raises(ValueError, match="every_s"):
        idle.sample("pool.sample", dict, every_s=0)


def test_while_nobody_answers_nothing_is_refused() -> None:
    attempts = Attempts(NOWHERE, 1, 1_000, lambda: None, {})
    parcels = [
        Parcel(n, 0.0, topic, b"k", b"v", False, None)
        for n, topic in enumerate((EVENTS, LIFECYCLE))
    ]
    failed, refused, why = attempts.send(parcels, None)
    assert (failed, refused) == (parcels, [])
    assert isinstance(why, OSError)


# --- with one -------------------------------------------------------------------------------------


def test_every_kind_arrives_from_emitter_and_producer(broker: brokers.Broker) -> None:
    made: dict[str, Event] = {}
    with Emitter(broker.bootstrap, source="emitter", fleet="f", batching=ASKED) as emitter:
        for kind in MODELS:
            said = {name: value for name, (value, _) in sample(kind).items()}
            assert emitter.emit(kind, **said), kind
            event = emitter.event(kind, source="producer", **said)
            assert isinstance(event, Event)
            made[kind] = event
    assert emitter.stats().requests[Trigger.CLOSE] == 1
    assert Counter(event.kind for event in told(broker, "emitter")) == ONCE
    with Producer(broker.bootstrap) as producer:
        for event in made.values():
            producer.post(event)
    assert {event.kind: event for event in told(broker, "producer")} == made


def run(broker: str, *arguments: str, stdin: str | None = None) -> Result:
    settings: dict[str, str | None] = {n: None for n in os.environ if n.startswith("RUNNERSTREAM_")}
    return CliRunner().invoke(
        main, [*arguments], input=stdin, env={**settings, "RUNNERSTREAM_KAFKA": broker}
    )


def test_every_kind_from_a_shell(broker: brokers.Broker) -> None:
    """The lines of a pipe, and a file of records; then single commands."""
    lines, records = [], []
    with Emitter(NOWHERE, source="file", close_s=0) as maker:
        for kind in MODELS:
            said = {n: value for n, (value, _) in sample(kind).items() if n != "fleet"}
            lines.append(json.dumps({"kind": kind, **said}))
            records.append(maker.event(kind, fleet="f", **said).model_dump_json())
    # An option that only some kinds have a field for is for these.
    options = ("--source", "pipe", "--fleet", "f", "--set", "duration_ms=7", "--provider", "gitea")
    result = run(broker.bootstrap, "emit", *options, stdin="\n".join(lines))
    assert (result.exit_code, result.stdout) == (0, f"{len(MODELS)} events told\n"), result.output
    assert Counter(event.kind for event in told(broker, "pipe")) == ONCE
    result = run(broker.bootstrap, "post", stdin="\n".join(records))
    assert result.stdout == f"{len(MODELS)} records posted to {EVENTS}\n", result.output
    assert Counter(event.kind for event in told(broker, "file")) == ONCE
    for kind in ("dispatch.request", "runner.info", "runner.scrape", "reconciler.tick"):
        texts = {n: text for n, (_, text) in sample(kind).items()}
        named = [word for n, text in texts.items() for word in ("--set", f"{n}={text}")]
        result = run(broker.bootstrap, "emit", kind, "--source", "command", *named)
        assert result.exit_code == 0, result.output
        event = told(broker, "command")[-1] if kind == "dispatch.request" else next(
            each for each in told(broker, "command") if each.kind == kind
        )  # fmt: skip
        said = json.loads(event.model_dump_json())
        assert {n: said[n] for n in texts} == {n: value for n, (value, _) in sample(kind).items()}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dispatch.reqest"], "dispatch.request? `runnerstream emit --list`"),
        (["dispatch.request"], "dispatch.request needs a fleet"),
        (["task.finished", "--fleet", "f", "--runner", "r"], "task.finished needs task_id (name)"),
        (["pool.sample", "--fleet", "f", "--set", "idle=-1"], "idle: Input should be greater"),
        (["pool.sample", "--fleet", "f", "--set", "idel=1"], "pool.sample has no idel; it has id,"),
        (["pool.sample", "--fleet", "f", "--runner", "r"], "pool.sample has no runner"),
        (["pool.sample", "--set", "idle"], "'idle' is not NAME=VALUE"),
        (["claim.attempt", "--fleet", "f", "--set", "outcome=x"], "'ok', 'lost_race'"),
        (["--list", "nonsense"], "there is no kind nonsense"),
    ],
)
def test_a_shell_is_told_what_is_wrong_and_what_would_be_right(
    arguments: list[str], says: str
) -> None:
    result = run(NOWHERE, "emit", *arguments)
    assert (result.exit_code, says in result.output) == (2, True), result.output


def test_emit_lists_every_kind_and_its_fields() -> None:
    listed = run(NOWHERE, "emit", "--list").stdout.splitlines()
    assert [line.partition(":")[0] for line in listed] == list(KINDS)
    assert "runner.poll: fleet runner [result] [duration_ms]" in "\n".join(listed)
    for kind in ("report.log", "job.claimed"):
        lines = run(NOWHERE, "emit", "--list", kind).stdout.splitlines()[1:]
        shown = {line.split()[0]: "required" in line.split() for line in lines}
        assert shown == {name: is_required(kind, name) for name in sample(kind)}


@pytest.mark.skipif(brokers.kind() != "kafka", reason="the embedded broker makes every topic")
def test_brokers_without_the_topic_of_telemetry_get_the_rest(tmp_path: Path) -> None:
    """As of an earlier release: what they have no place for does not hold up the rest."""
    with brokers.broker(tmp_path) as old:
        admin = KafkaAdminClient(bootstrap_servers=old.bootstrap)
        admin.create_topics([NewTopic(LIFECYCLE, PARTITIONS, 1)])
        few = Batching(request_records=5, backoff_s=0.05, backoff_max_s=0.1)
        emitter = Emitter(old.bootstrap, source="new", fleet="f", batching=few, attempt_s=10)
        for number in range(20):
            assert emitter.emit("pool.sample", idle=number)
        for number in range(3):
            assert emitter.emit("job.started", job_id=number)
        assert emitter.flush(LONG)
        stats = emitter.stats()
        assert (stats.delivered, stats.dropped[Drop.REFUSED]) == (3, 20)
        assert not emitter.trouble
        assert len(told(old, "new", LIFECYCLE)) == 3
        emitter.close()
        admin.close()
