"""The command line: errors and exit codes, and the commands on a real broker and ClickHouse."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
from click.testing import CliRunner, Result
from kafka import KafkaConsumer, TopicPartition

from pipeline.agents.normalise import record_facts
from pipeline.cli import main, quiet_interrupt
from pipeline.commands.context import seconds_of
from pipeline.commands.explain import key_of
from pipeline.commands.output import cell
from pipeline.local import EmbeddedClickHouse, unavailable
from pipeline.local.process import free_port
from pipeline.text import duration
from tests.support import PATIENCE
from tests.support.brokers import Broker, broker, kind
from tests.support.worker import ROOT, WorkerProcess
from topics import bridge
from topics.catalogue import DEAD_LETTERS, JOB_STATES, LIFECYCLE, WEBHOOKS
from topics.models import DeadLetter, Reason, Unreadable
from topics.producer import Producer

PAYLOADS = Path(__file__).parent / "data" / "github"
NOWHERE = "127.0.0.1:1"

needs_local = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


def run(*arguments: str, stdin: str | None = None, **settings: str) -> Result:
    """Run the command with these settings and no others."""
    env: dict[str, str | None] = {n: None for n in os.environ if n.startswith("RUNNERSTREAM_")}
    env |= {f"RUNNERSTREAM_{name.upper()}": value for name, value in settings.items()}
    return CliRunner().invoke(main, arguments, env=env, input=stdin)


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker(tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.fixture(scope="module")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedClickHouse]:
    with EmbeddedClickHouse(tmp_path_factory.mktemp("clickhouse")) as running:
        yield running


# -- without servers -------------------------------------------------------------------------------


def test_version_and_help() -> None:
    result = run("--version")
    assert (result.exit_code, result.output.split()[0]) == (0, "runnerstream")
    result = run("--help")
    assert result.exit_code == 0
    for name in (
        "demo", "worker", "topics", "schema", "simulate", "replay", "post", "local", "sql", "jobs",
        "explain", "doctor", "dead-letters", "verify",
    ):  # fmt: skip
        assert name in result.output
        assert run(name, "--help").exit_code == 0


def test_the_module_is_the_command() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "--version"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stdout.startswith("runnerstream ")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"partitions": "many"}, "setting partitions (RUNNERSTREAM_PARTITIONS): "),
        ({"web_port": "70000"}, "setting web_port (RUNNERSTREAM_WEB_PORT): "),
        ({"fleets": "{"}, "setting fleets (RUNNERSTREAM_FLEETS): expected a JSON object"),
        ({"kafka_security": "SASL_SSL"}, "settings: kafka_security is SASL_SSL, so kafka_user"),
        ({"store": "s3cret-value"}, "setting store"),
    ],
)
def test_a_wrong_setting_is_named_and_its_value_is_not(settings: dict[str, str], says: str) -> None:
    result = run("topics", "show", **settings)
    assert result.exit_code == 2
    assert says in result.output
    assert "Traceback" not in result.output
    assert "s3cret-value" not in result.output


def test_the_configuration_file(tmp_path: Path) -> None:
    result = run("--config", str(tmp_path / "none"), "topics", "show")
    assert result.exit_code == 2
    assert "does not exist" in result.output
    file = tmp_path / "env"
    file.write_text(f"RUNNERSTREAM_KAFKA={NOWHERE}\n")
    result = run("--config", str(file), "topics", "show")
    assert result.exit_code == 3
    assert f"no Kafka broker answers at {NOWHERE}" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["topics", "apply"],
        ["dead-letters", "list"],
        ["verify"],
        ["simulate", "--duration", "1s"],
        ["worker", "--role", "fold", "--wait", "0"],
        ["replay", str(PAYLOADS / "workflow_job.queued.json")],
    ],
)
def test_no_broker_is_three(arguments: list[str]) -> None:
    result = run(*arguments, kafka=NOWHERE)
    assert result.exit_code == 3
    assert f"no Kafka broker answers at {NOWHERE}" in result.output
    assert "runnerstream local up" in result.output


@pytest.mark.parametrize(
    "arguments", [["sql", "SELECT 1"], ["schema", "apply"], ["schema", "show"]]
)
def test_no_clickhouse_is_three_and_its_password_stays_secret(arguments: list[str]) -> None:
    result = run(*arguments, clickhouse=f"clickhouse://me:s3cret@{NOWHERE}/x")
    assert result.exit_code == 3
    assert f"ClickHouse does not answer at {NOWHERE}" in result.output
    assert "s3cret" not in result.output
    result = run(*arguments, clickhouse="")
    assert result.exit_code == 2
    assert "setting clickhouse is empty" in result.output


def test_no_worker_is_three() -> None:
    assert run("explain", "7", web_port="1").exit_code == 3
    result = run("jobs", web_port="1")
    assert result.exit_code == 3
    assert "no worker answers at http://127.0.0.1:1" in result.output


def test_doctor_without_anything() -> None:
    result = run("doctor", kafka=NOWHERE, clickhouse=f"clickhouse://{NOWHERE}/x", web_port="1")
    assert result.exit_code == 3
    assert "BAD" in result.output
    assert "do: " in result.output
    told = json.loads(run("doctor", "--json", kafka=NOWHERE, clickhouse="", web_port="1").stdout)
    assert {each["what"]: each["state"] for each in told} == {
        "Kafka": "bad", "ClickHouse": "skipped", "worker": "look", "prober": "look",
    }  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["worker", "--role", "cook"],
        ["jobs", "--age", "soon"],
        ["explain", "soon"],
        ["explain", "https://github.com/acme/app/pull/5"],
        ["simulate", "--duration", "-5"],
        ["replay"],
        ["dead-letters", "replay"],
    ],
)
def test_wrong_usage_is_two(arguments: list[str]) -> None:
    assert run(*arguments, kafka=NOWHERE).exit_code == 2


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ("GitHub:GHE.corp:443:7", "github:ghe.corp:7"),
        (" github:github.com:7 ", "github:github.com:7"),
        ("45670000001", "github:github.com:45670000001"),
        ("https://github.com/acme/app/actions/runs/9/job/7", "github:github.com:7"),
        ("https://GHE.corp:8443/a/b/actions/runs/9/job/7?pr=3#step:4:1", "github:ghe.corp:8443:7"),
        ("https://github.com/a/b/actions/runs/9/attempts/2/job/7", "github:github.com:7"),
    ],
)
def test_a_job_is_named_by_its_key_its_id_or_the_address_of_its_page(said: str, key: str) -> None:
    assert key_of(said) == key


@pytest.mark.parametrize(
    "said", ["", "build", "a:b", "https://github.com/a/b/actions/runs/9", "https://[", "http://"]
)
def test_what_names_no_job_is_wrong_usage(said: str) -> None:
    result = run("explain", said)
    assert result.exit_code == 2
    assert "job" in result.output


def test_durations() -> None:
    assert [seconds_of(text) for text in ("90", "90s", "1.5m", "2h", "7d")] == [
        90, 90, 90, 7_200, 604_800,
    ]  # fmt: skip
    assert [duration(ms) for ms in (None, 0, 999, 1_000, 65_000, 3_600_000, 172_800_000)] == [
        "–", "0 ms", "999 ms", "1.0 s", "1 m 05 s", "1 h 00 m", "2 d",
    ]  # fmt: skip


# -- on a broker -----------------------------------------------------------------------------------


def test_topics_from_nothing(kafka: Broker) -> None:
    options = {"kafka": kafka.bootstrap, "app_id": "clitopics", "partitions": "3"}
    result = run("topics", "show", **options)
    assert result.exit_code == 1
    assert "missing" in result.output
    result = run("worker", "--role", "fold", **options)
    assert result.exit_code == 1
    assert "topics are missing: runners.webhooks" in result.output
    assert "runnerstream topics apply" in result.output
    result = run("topics", "apply", **options)
    assert (result.exit_code, "20 created" in result.output) == (0, True)
    result = run("topics", "apply", **options)
    assert (result.exit_code, "0 created, 20 as they should be" in result.output) == (0, True)
    assert run("topics", "show", **options).exit_code == 0
    shown = json.loads(run("topics", "show", "--json", **options).stdout)
    assert {each["state"].partition(",")[0] for each in shown} == {"ok"}
    result = run("topics", "apply", **{**options, "partitions": "5"})
    assert result.exit_code == 1
    assert "partitions is 3, should be 5" in result.output
    result = run("worker", "--role", "fold", **{**options, "partitions": "5"})
    assert result.exit_code == 1
    assert "contradict" in result.output


def test_doctor_says_whether_a_replaced_worker_is_refused(kafka: Broker) -> None:
    told = json.loads(run("doctor", "--json", kafka=kafka.bootstrap, web_port="1").stdout)
    [fencing] = [each for each in told if each["what"] == "fencing"]
    assert fencing["state"] == ("ok" if kind() == "kafka" else "look")


def records(kafka: Broker, topic: str) -> list[Any]:
    """Everything in a topic now."""
    consumer = KafkaConsumer(bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest")
    try:
        where = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic)]
        consumer.assign(where)
        ends = consumer.end_offsets(where)
        consumer.seek_to_beginning(*where)
        found: list[Any] = []
        deadline = time.monotonic() + PATIENCE * 20
        while any(consumer.position(tp) < ends[tp] for tp in where):
            assert time.monotonic() < deadline
            for batch in consumer.poll(timeout_ms=200).values():
                found += batch
        return found
    finally:
        consumer.close()


def test_simulate_and_replay(kafka: Broker, tmp_path: Path) -> None:
    options = {"kafka": kafka.bootstrap, "partitions": "3", "app_id": "clitopics"}
    run("topics", "apply", **options)
    before = len(records(kafka, WEBHOOKS))
    result = run(
        "simulate", "--fast", "--rate", "60", "--duration", "30s", "--seed", "3", **options
    )
    assert result.exit_code == 0, result.output
    assert "records" in result.output
    simulated = records(kafka, WEBHOOKS)[before:]
    assert len(simulated) > 30
    assert all(bridge.raw(each) for each in simulated)
    file = tmp_path / "recorded.jsonl"
    bodies = sorted(PAYLOADS.glob("workflow_job.*.json"))
    file.write_text("".join(json.dumps(json.loads(b.read_text())) + "\n" for b in bodies))
    result = run("replay", str(file), str(bodies[0]), **options)
    assert (result.exit_code, result.output) == (0, f"{len(bodies) + 1} deliveries posted\n")
    file.write_text("{}\n")
    result = run("replay", str(file), **options)
    assert result.exit_code == 1
    assert f"{file}:1: neither a workflow_job" in result.output


def test_what_we_send_ourselves_is_believed_where_secrets_are_set(
    kafka: Broker, tmp_path: Path
) -> None:
    options = {"kafka": kafka.bootstrap, "partitions": "3", "app_id": "clitopics"}
    run("topics", "apply", **options)
    before = {(r.partition, r.offset) for r in records(kafka, WEBHOOKS)}
    options["github_secrets"] = "new,old"
    asked = tmp_path / "asked.json"
    asked.write_text(json.dumps({"id": 5, "run_id": 6, "status": "queued"}))
    now = int(time.time() * 1000)
    written = {
        "id": "d/1", "kind": "github.workflow_job", "source": "me", "occurred_at": now,
        "received_at": now, "key": "k", "payload": '{"workflow_job": {"id": 993}}',
    }  # fmt: skip
    body = PAYLOADS / "workflow_job.queued.json"
    for arguments, stdin in (
        (["simulate", "--fast", "--rate", "60", "--duration", "10s", "--seed", "3"], None),
        (["replay", str(body), str(asked)], None),
        (["post"], json.dumps([written, {**written, "kind": "github.api_job", "trace": "t",
                                         "payload": '{"id": 993, "run_id": 6, "status": "queued"}'
                                         }])),
    ):  # fmt: skip
        result = run(*arguments, stdin=stdin, **options)
        assert result.exit_code == 0, result.output
    sent = [r for r in records(kafka, WEBHOOKS) if (r.partition, r.offset) not in before]
    assert len(sent) > 10
    for record in sent:
        record_facts(record, {"github": [b"new"]})
        with pytest.raises(Unreadable, match="x-hub-signature-256"):
            record_facts(record, {"github": [b"old"]})
    # Only what no webhook tells is an envelope.
    assert len([r for r in sent if bridge.raw(r) is None]) == 2


def letter(number: int, reason: Reason, value: bytes | None, age_s: float = 0) -> DeadLetter:
    at = int((time.time() - age_s) * 1000)
    return DeadLetter.model_construct(
        id=f"{WEBHOOKS}:0:{number}", kind="dead_letter", version=1, source="runnerstream",
        occurred_at=at, received_at=at, key=f"{WEBHOOKS}:0:{number}", reason=reason,
        stage="normalise" if number % 2 else "sink", error=f"wrong [bold]{number}[/bold]",
        topic=WEBHOOKS, partition=0, offset=number, trace=None,
        record_key=b"key \xff %d" % number, record_value=value, record_headers={},
    )  # fmt: skip


def test_dead_letters(kafka: Broker) -> None:
    options = {"kafka": kafka.bootstrap, "partitions": "3", "app_id": "clitopics"}
    run("topics", "apply", **options)
    assert "no dead letters" in run("dead-letters", "list", **options).output
    value = b'{"cut": "short \xfe'
    given = [
        letter(1, Reason.NOT_JSON, value),
        letter(2, Reason.NOT_JSON, b"two"),
        letter(3, Reason.NO_JOB, b"three", age_s=7_200),
        letter(4, Reason.TOO_LARGE, None).model_copy(update={"record_key": None}),
    ]
    given[1] = given[1].model_copy(update={"record_headers": {"X-GitHub-Event": "ping"}})
    with Producer(kafka.bootstrap) as producer:
        # The first one twice: a batch that was repeated after a crash.
        for each in (*given, given[0]):
            producer.send(DEAD_LETTERS, each.key.encode(), each.model_dump_json().encode())
        producer.send(DEAD_LETTERS, b"x", b"not a letter")
    result = run("dead-letters", "list", **options)
    assert result.exit_code == 0
    assert "4 letters" in result.output
    assert "wrong [bold]1[/bold]" in result.output
    assert "unreadable letter" in result.output
    told = json.loads(run("dead-letters", "list", "--json", "--since", "1h", **options).stdout)
    assert told["total"] == 3
    told = json.loads(
        run("dead-letters", "list", "--json", "--reason", "not_json", "--stage", "sink", **options)
        .stdout
    )  # fmt: skip
    assert [each["id"] for each in told["letters"]] == [f"{WEBHOOKS}:0:2"]
    result = run("dead-letters", "show", f"{WEBHOOKS}:0:1", **options)
    assert (result.exit_code, json.loads(result.stdout)["reason"]) == (0, "not_json")
    assert json.loads(result.stdout)["record_value"] == repr(value)
    raw = run("dead-letters", "show", "--raw", f"{WEBHOOKS}:0:1", **options)
    assert raw.stdout_bytes == value
    assert run("dead-letters", "show", f"{WEBHOOKS}:0:99", **options).exit_code == 1

    before = len(records(kafka, WEBHOOKS))
    result = run("dead-letters", "replay", "--reason", "not_json", "--dry-run", **options)
    assert (result.exit_code, f"2  would be replayed to {WEBHOOKS}" in result.output) == (0, True)
    assert len(records(kafka, WEBHOOKS)) == before
    result = run("dead-letters", "replay", "--reason", "not_json", **options)
    assert (result.exit_code, f"2  replayed to {WEBHOOKS}" in result.output) == (0, True)
    posted = sorted(records(kafka, WEBHOOKS), key=lambda r: r.timestamp)[before:]
    assert {(r.key, r.value) for r in posted} == {(b"key \xff 1", value), (b"key \xff 2", b"two")}
    assert len(posted) == 2
    with_headers, without = sorted(posted, key=lambda r: r.value)
    assert without.headers == []
    assert dict(with_headers.headers) == {
        "X-GitHub-Event": b"ping", bridge.RECEIVED_AT: b"%d" % given[1].occurred_at,
    }  # fmt: skip
    result = run(
        "dead-letters", "replay", "--all", "--since", "1h", "--reason", "too_large", **options
    )
    assert result.exit_code == 0
    assert f"not replayed: {WEBHOOKS}:0:4 does not carry its record" in result.output
    # An old state on a compacted topic would stand for a newer one: only when asked to.
    old = letter(5, Reason.BAD_PAYLOAD, b"state").model_copy(
        update={"id": f"{JOB_STATES}:0:5", "key": f"{JOB_STATES}:0:5", "topic": JOB_STATES}
    )
    with Producer(kafka.bootstrap) as producer:
        producer.send(DEAD_LETTERS, old.key.encode(), old.model_dump_json().encode())
    only = ["dead-letters", "replay", "--reason", "bad_payload"]
    result = run(*only, **options)
    assert f"not replayed: 1 to {JOB_STATES}, which is compacted" in result.output
    assert records(kafka, JOB_STATES) == []
    assert "1  replayed to" in run(*only, "--compacted", **options).output
    assert [r.value for r in records(kafka, JOB_STATES)] == [b"state"]
    result = run("dead-letters", "replay", "--id", f"{WEBHOOKS}:0:3", **options)
    assert f"1  replayed to {WEBHOOKS}" in result.output


# -- on ClickHouse ---------------------------------------------------------------------------------


@needs_local
def test_schema_and_sql(clickhouse: EmbeddedClickHouse) -> None:
    options = {"clickhouse": clickhouse.url}
    result = run("schema", "show", **options)
    assert result.exit_code == 1
    assert "missing" in result.output
    result = run("schema", "apply", **options)
    assert (result.exit_code, "applied  0001_tables" in result.output) == (0, True)
    result = run("schema", "apply", **options)
    assert (result.exit_code, "0 migrations applied" in result.output) == (0, True)
    result = run("schema", "show", **options)
    assert (result.exit_code, "job_timings" in result.output) == (0, True)

    query = "SELECT number AS n, concat('a', toString(number)) AS name FROM numbers(3)"
    result = run("sql", query, **options)
    assert result.exit_code == 0
    assert result.output.split() == ["n", "name", "0", "a0", "1", "a1", "2", "a2", "3", "rows"]
    result = run("sql", "--json", query, **options)
    assert [json.loads(line)["n"] for line in result.output.splitlines()] == [0, 1, 2]
    result = run("sql", "--limit", "2", query, **options)
    assert "2 rows" in result.output
    assert "cut: there are more rows than 2" in result.output
    result = run("sql", stdin="SELECT 1 AS one;\nSELECT\n 2 AS two;\n", **options)
    assert result.exit_code == 0
    assert "one" in result.output
    assert "two" in result.output
    for how in ({"stdin": "SELEC 1;"}, {}):
        arguments = ["sql"] if how else ["sql", "SELEC 1"]
        result = run(*arguments, **how, **options)  # type: ignore[arg-type]
        assert result.exit_code == 1
        assert "ClickHouse says (62): Syntax error" in result.output
    assert (
        run("sql", "SELECT '[bold]x[/bold]' AS x", **options).output.split()[1] == "[bold]x[/bold]"
    )


@needs_local
def test_local_up_status_down(tmp_path: Path) -> None:
    directory = ["--dir", str(tmp_path / "stack")]
    assert run("local", "status", *directory).exit_code == 1
    ports = ["--kafka-port", "0", "--clickhouse-port", "0", "--clickhouse-http-port", "0"]
    result = run("local", "up", *directory, *ports)
    try:
        assert result.exit_code == 0, result.output
        (line,) = [each for each in result.stdout.splitlines() if each]
        file = Path(line.removeprefix("export RUNNERSTREAM_CONFIG="))
        assert file.stat().st_mode & 0o077 == 0
        assert run("--config", str(file), "topics", "apply").exit_code == 0
        assert run("--config", str(file), "sql", "SELECT 1").exit_code == 0
        shown = run("local", "status", "--json", *directory)
        assert (shown.exit_code, json.loads(shown.stdout)["running"]) == (0, True)
        password = file.read_text().partition("runnerstream:")[2].partition("@")[0]
        assert password
        assert password not in shown.output + run("local", "status", *directory).output
        again = run("local", "up", *directory, *ports)
        assert again.exit_code == 1
        assert "runs in" in again.output
    finally:
        result = run("local", "down", *directory)
    assert (result.exit_code, result.output) == (0, "stopped\n")
    assert run("local", "down", *directory).output == "nothing was running\n"


# -- a worker --------------------------------------------------------------------------------------


def sinks_of(pid: int) -> list[int]:
    """The sinks among the processes beside a worker."""
    found = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.Error):
            if "sink" in child.cmdline():
                found.append(child.pid)
    return found


def gone(pid: int, timeout: float = 15.0) -> bool:
    deadline = time.monotonic() + PATIENCE * timeout
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            # A zombie whose parent has not asked yet is gone, too.
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                time.sleep(0.1)
                continue
        return True
    return False


@needs_local
def test_a_worker_with_its_sink(kafka: Broker, clickhouse: EmbeddedClickHouse) -> None:
    options = {
        "kafka": kafka.bootstrap,
        "partitions": "3",
        "app_id": "clitopics",
        "clickhouse": clickhouse.url,
        "sink_port": str(free_port()),
    }
    assert run("topics", "apply", **options).exit_code == 0
    worker = WorkerProcess(
        kafka.bootstrap, role="all", **{k: v for k, v in options.items() if k != "kafka"}
    )
    with worker:
        worker.wait_ready(90)
        where = {**options, "web_port": str(worker.port)}
        assert worker.pid is not None
        (sink,) = sinks_of(worker.pid)
        result = run("simulate", "--fast", "--duration", "10s", "--seed", "3", **options)
        assert result.exit_code == 0

        def stored() -> bool:
            answer = run("sql", "--json", "SELECT count() AS n FROM jobs_latest", **options)
            return bool(json.loads(answer.stdout)["n"] > 10)

        worker.wait(stored, 60, "store jobs")
        listed = run("jobs", "--state", "any", "--limit", "5", **where)
        assert (listed.exit_code, "5 of" in listed.output) == (0, True)
        told = json.loads(
            run("jobs", "--state", "any", "--limit", "2000", "--json", **where).stdout
        )
        assert told["matched"] == len(told["jobs"]) > 10
        looked = run("doctor", "--json", **where)
        assert looked.exit_code == 0, (looked.output, looked.exception)
        told = json.loads(looked.stdout)
        states = {e["what"]: e["state"] for e in told}
        assert (states["worker"], states["sink"]) == ("ok", "ok")
        # The log names the views, and says when they can be trusted.
        log = worker.log.read_text()
        assert f"views at {worker.url}/" in log
        assert f": {worker.url}/" in log.partition("ready after ")[2]
        assert {e["state"] for e in told} <= {"ok", "look"}

        # A crashed sink comes back; ours to say meanwhile that it is away.
        os.kill(sink, signal.SIGKILL)
        worker.wait(lambda: sinks_of(worker.pid or 0) not in ([], [sink]), 20, "start a new sink")
        worker.wait_ready(90)
        (second,) = sinks_of(worker.pid)
        assert second != sink
        assert worker.stop() == 0
    assert gone(second)
    # kill -9 of the worker takes the sink with it.
    worker.start()
    worker.wait(lambda: bool(sinks_of(worker.pid or 0)), 20, "start a sink")
    assert worker.pid is not None
    (third,) = sinks_of(worker.pid)
    worker.kill()
    assert gone(third)


@pytest.mark.parametrize("ready", [True, False])
def test_a_worker_starts_and_stops_with_a_calm_log(ready: bool, kafka: Broker) -> None:
    options = {"kafka": kafka.bootstrap, "partitions": "3", "app_id": "clitopics"}
    run("topics", "apply", **options)
    worker = WorkerProcess(kafka.bootstrap, partitions=3, app_id="clitopics")
    with worker:
        if ready:
            worker.wait_ready(90)
            worker.wait(lambda: "ready after" in worker.log.read_text(), 20, "say that it is ready")
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGINT)
        worker.wait(lambda: worker.pid is None, 90, "end")
        assert worker.returncode == 0
    log = worker.log.read_text()
    lines = log.splitlines()
    (first,) = (line for line in lines if "runnerstream " in line and "worker of group" in line)
    assert f"Kafka {kafka.bootstrap}, 3 partitions" in first
    assert f"views at {worker.url}/" in first
    for noise in (
        "Traceback",
        " ERROR ",
        "[^-",
        "No partition metadata",
        "Starting...",
        "Stopping...",
    ):
        assert noise not in log
    assert len(lines) < 15


def test_a_taken_port_is_named(kafka: Broker) -> None:
    options = {"kafka": kafka.bootstrap, "partitions": "3", "app_id": "clitopics"}
    run("topics", "apply", **options)
    result = run("worker", "--role", "fold", "--web-port", str(kafka.port), **options)
    assert result.exit_code == 1
    assert f"setting web_port: cannot listen on 127.0.0.1:{kafka.port}" in result.output
    assert "--web-port (0 picks one)" in result.output


# -- output ----------------------------------------------------------------------------------------


class Jobs(BaseHTTPRequestHandler):
    """A worker's page of jobs with long names in every column."""

    ROWS: ClassVar = [
        {
            "key": f"github:ghes.example-organisation.com:{44330000000 + n}", "status": "completed",
            "conclusion": "success", "age_ms": 1_000 * n, "name": f"build :x: ({n}) \x1b[31m" * 3,
            "workflow": "a workflow with a long name", "repo": "example-organisation/repository",
            "fleet": "linux,x64,large", "runner": "runner-of-a-long-name",
            "actor": "octo\x1b[31m\u202ecat", "trigger": "pull_request", "pull_request": 4_711,
            "head_repo": "octocat/repository",
        }
        for n in range(300)
    ]  # fmt: skip

    #: What was asked last.
    asked: ClassVar = [""]

    def do_GET(self) -> None:
        self.asked[0] = self.path
        page = {"jobs": self.ROWS, "next": None, "matched": len(self.ROWS), "incomplete": []}
        body = json.dumps(page).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def worker_of_jobs() -> Iterator[str]:
    served = ThreadingHTTPServer(("127.0.0.1", 0), Jobs)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_address[1]}"
    served.shutdown()
    served.server_close()


def program(*arguments: str, **more: Any) -> subprocess.Popen[bytes]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("RUNNERSTREAM_")}
    env |= more.pop("env", {})
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *arguments], cwd=ROOT, env=env, **more
    )


@pytest.mark.parametrize("width", [40, 80, 200])
def test_keys_of_jobs_can_be_copied_whatever_the_width(width: int, worker_of_jobs: str) -> None:
    ours, theirs = pty.openpty()
    process = program("jobs", "--url", worker_of_jobs, "--limit", "300", stdout=theirs,
                      env={"COLUMNS": str(width)})  # fmt: skip
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):
        while got := os.read(ours, 65_536):
            seen += got
    assert process.wait(PATIENCE * 60) == 0
    os.close(ours)
    lines = re.sub(r"\x1b\[[\d;]*m", "", seen.decode()).splitlines()
    rows = [line for line in lines if line.startswith("github:")]
    assert [line.split()[0] for line in rows] == [row["key"] for row in Jobs.ROWS]
    assert "\x1b[31m" not in seen.decode()
    # A line a job, as long as key, state and age leave any room.
    if width >= 120:
        assert all(len(line) <= width for line in rows)


def test_what_is_no_terminal_gets_whole_lines(worker_of_jobs: str) -> None:
    result = run("jobs", "--url", worker_of_jobs, "--limit", "300")
    for row in Jobs.ROWS:
        line = next(line for line in result.stdout.splitlines() if line.startswith(row["key"]))
        for name in ("workflow", "repo", "fleet", "runner", "trigger", "pull_request", "head_repo"):
            assert str(row[name]) in line
        assert "octo\\x1b[31m\\u{202e}cat" in line
        assert ":x:" in line
        assert "\x1b" not in line


def test_jobs_are_asked_for_by_who_started_them_and_by_what(worker_of_jobs: str) -> None:
    run("jobs", "--url", worker_of_jobs, "--actor", "ann&bob", "--trigger", "push")
    assert "actor=ann%26bob" in Jobs.asked[0]
    assert "trigger=push" in Jobs.asked[0]
    run("jobs", "--url", worker_of_jobs)
    assert "actor" not in Jobs.asked[0]


def test_jobs_of_a_worker_that_does_not_know_who_started_them_are_listed(
    worker_of_jobs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = ("actor", "trigger", "pull_request", "head_repo")
    [row] = [{name: said for name, said in row.items() if name not in unknown}
             for row in Jobs.ROWS[:1]]  # fmt: skip
    monkeypatch.setattr(Jobs, "ROWS", [row])
    result = run("jobs", "--url", worker_of_jobs)
    [line] = [line for line in result.stdout.splitlines() if line.startswith(row["key"])]
    assert line.split()[-4:] == ["–"] * 4


def test_a_worker_of_an_earlier_release_does_not_explain(worker_of_jobs: str) -> None:
    result = run("explain", "7", "--url", worker_of_jobs)
    assert result.exit_code == 1
    assert "does not explain jobs: it is of an earlier release" in result.output
    assert Jobs.asked[0] == "/jobs/github:github.com:7"


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_reader_that_has_gone_ends_a_command_quietly(
    more: list[str], worker_of_jobs: str
) -> None:
    for arguments in (["jobs", "--url", worker_of_jobs, *more], ["doctor", *more]):
        ours, theirs = os.pipe()
        os.close(ours)
        process = program(
            *arguments, stdout=theirs, stderr=subprocess.PIPE,
            env={"RUNNERSTREAM_KAFKA": NOWHERE, "RUNNERSTREAM_CLICKHOUSE": "",
                 "RUNNERSTREAM_WEB_PORT": "1"},
        )  # fmt: skip
        os.close(theirs)
        _, told = process.communicate(timeout=PATIENCE * 60)
        assert (process.returncode, told) == (141, b""), arguments


def test_output_that_cannot_hold_a_character_gets_an_escape(worker_of_jobs: str) -> None:
    process = program("topics", "show", "--help", stdout=subprocess.PIPE,
                      env={"PYTHONIOENCODING": "ascii"})  # fmt: skip
    assert process.wait(PATIENCE * 60) == 0
    for more in ([], ["--json"]):
        process = program(
            "doctor", *more, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={"PYTHONIOENCODING": "ascii", "RUNNERSTREAM_KAFKA": NOWHERE,
                 "RUNNERSTREAM_CLICKHOUSE": "", "RUNNERSTREAM_WEB_PORT": "1"},
        )  # fmt: skip
        out, told = process.communicate(timeout=PATIENCE * 60)
        assert (process.returncode, told) == (3, b"")
        if more:
            json.loads(out)


def test_the_interrupt_key_is_130_and_no_traceback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        process = program("topics", "show", stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env={"RUNNERSTREAM_KAFKA": where})  # fmt: skip
        silent.settimeout(60)
        with silent.accept()[0]:  # now it waits for an answer
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=PATIENCE * 60)
    assert process.returncode == 130
    assert told.strip() == b""


def test_the_interrupt_key_while_modules_are_imported() -> None:
    def imports() -> None:
        with quiet_interrupt():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)

    with pytest.raises(SystemExit) as ended:
        imports()
    assert ended.value.code == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    # What stands before the first such block is Python's own.
    before = (ROOT / "pipeline/cli.py").read_text().partition("with quiet_interrupt():")[0]
    imported = set(re.findall(r"^(?:import|from) (\w+)", before, re.MULTILINE))
    assert imported <= sys.stdlib_module_names


def test_a_table_shows_what_is_there() -> None:
    for text in (":smile:", "[bold]x[/bold]", "a\x1b[0m", "tab\there", "ü €", "日本"):
        shown = cell(text)
        assert "\x1b" not in shown
        assert "\n" not in shown
        if text.isprintable():
            assert shown == text
    assert cell(None) == "–"
    assert cell("a\nb\x00") == "a\\nb\\x00"


# -- post ------------------------------------------------------------------------------------------


def test_post(kafka: Broker, tmp_path: Path) -> None:
    options = {"kafka": kafka.bootstrap, "partitions": "3", "app_id": "clitopics"}
    run("topics", "apply", **options)
    now = int(time.time() * 1000)
    event = {
        "id": "e/1", "kind": "job.queued", "source": "me", "occurred_at": now, "received_at": now,
        "key": "github:github.com:991", "job_id": "991", "fleet": "x",
    }  # fmt: skip
    delivery = {
        "id": "d/1", "kind": "github.workflow_job", "source": "me", "occurred_at": now,
        "received_at": now, "key": "github:github.com:992", "payload": "{}",
    }  # fmt: skip
    before = len(records(kafka, LIFECYCLE)), len(records(kafka, WEBHOOKS))
    text = f"{json.dumps(event)}\n\n{json.dumps([delivery, {**event, 'id': 'e/2'}], indent=2)}"
    result = run("post", stdin=text, **options)
    assert result.exit_code == 0, result.output
    assert "2 records posted to runners.lifecycle" in result.stdout
    assert "1 record posted to runners.webhooks" in result.stdout
    posted = records(kafka, LIFECYCLE)[before[0] :]
    assert {r.key for r in records(kafka, LIFECYCLE)} >= {b"github:github.com:991"}
    assert len(posted) == 2
    (hook,) = (r for r in records(kafka, WEBHOOKS) if r.key == b"github:github.com:992")
    assert (hook.value, dict(hook.headers)) == (
        b"{}",
        {
            "x-github-event": b"workflow_job", "x-github-delivery": b"d/1",
            bridge.RECEIVED_AT: b"%d" % now, bridge.SOURCE: b"me",
        },
    )  # fmt: skip
    # All are checked before the first is posted.
    file = tmp_path / "records"
    for bad, says in (
        ("nonsense", "line 2: not JSON"),
        ("[1]", "line 2: bad_envelope: a record is a JSON object"),
        (json.dumps({**event, "kind": "job.nonsense"}), "line 2: unknown_kind"),
        (json.dumps({k: v for k, v in event.items() if k != "id"}), "line 2: bad_envelope: id"),
    ):
        file.write_text(f"{json.dumps(event)}\n{bad}\n")
        result = run("post", str(file), **options)
        assert result.exit_code == 2
        assert f"{file}, {says}" in result.output
    assert run("post", stdin=" \n", **options).exit_code == 2
    assert len(records(kafka, LIFECYCLE)) == before[0] + 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", ["worker --role fold", "gateway"])
def test_who_waits_for_kafka_ends_when_told(
    command: str, number: signal.Signals, tmp_path: Path
) -> None:
    """By a handler: the first process of a container has no other way to hear it."""
    (tmp_path / "github").write_text("swordfish")
    process = program(
        *command.split(), "--wait", "600s", stderr=subprocess.PIPE,
        env={"RUNNERSTREAM_KAFKA": NOWHERE, "RUNNERSTREAM_CLICKHOUSE": "",
             "RUNNERSTREAM_GATEWAY_LISTEN": "127.0.0.1:0",
             "RUNNERSTREAM_WEBHOOK_SECRETS_DIR": str(tmp_path)},
    )  # fmt: skip
    assert process.stderr is not None
    assert b"waiting up to 600 s" in process.stderr.readline()
    process.send_signal(number)
    told = process.communicate(timeout=PATIENCE * 60)[1]
    assert process.returncode == 128 + number, told
    assert b"Traceback" not in told
