"""The documentation is part of the product: what it says exists, and what it shows runs."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
from click.testing import CliRunner
from clickhouse_driver import Client
from clickhouse_driver.errors import ServerException
from kafka import KafkaConsumer, TopicPartition

from pipeline.agents.normalise import (
    lifecycle_facts,
    record_facts,
    telemetry_record,
    webhook_facts,
)
from pipeline.cli import main
from pipeline.commands.connections import ask
from pipeline.local import EmbeddedClickHouse, unavailable
from pipeline.settings import Settings
from sinks import schema
from tests.support import PATIENCE, brokers
from tests.support.worker import WorkerProcess
from topics import models
from topics.apply import apply
from topics.catalogue import EVENTS, LIFECYCLE, WEBHOOKS, catalogue
from topics.events import EVENT, FAMILIES, MODELS
from topics.reading import read
from topics.said import URGENT

ROOT = Path(__file__).resolve().parents[1]
PARTITIONS = 2


def _generator() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = _generator()
PAGES: list[Path] = generate.pages()
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def _blocks() -> list[Block]:
    found = []
    for page, name in zip(PAGES, NAMES, strict=True):
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(name, line, match.group(1), match.group(2)))
    return found


BLOCKS = _blocks()


def _of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


# --- pages ------------------------------------------------------------------------------------


def test_the_pages_are_where_the_readme_says() -> None:
    assert {"README.md", "docs/producers.md", "docs/operators.md", "docs/how-it-works.md",
            "docs/dependencies.md", "docs/glossary.md", "docs/invariants.md",
            "docs/versioning.md", "docs/where-things-are.md", "CHANGELOG.md", "CONTRIBUTING.md",
            "SECURITY.md"} <= set(NAMES)  # fmt: skip


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached = {ROOT / "README.md"}
    waiting = list(reached)
    while waiting:
        page = waiting.pop()
        for target in re.findall(r"\]\(([^)\s#]+)", page.read_text()):
            linked = (page.parent / target).resolve()
            if linked in PAGES and linked not in reached:
                reached.add(linked)
                waiting.append(linked)
    assert set(PAGES) - reached == set()


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_generated_parts_are_up_to_date(page: Path) -> None:
    if page.name == "dependencies.md":
        # Licences come from what is installed; `make test` installs all of it.
        missing = _not_installed()
        if missing:
            pytest.skip(f"not installed: {', '.join(missing)}")
    text = page.read_text(encoding="utf-8")
    assert generate.regenerate(text) == text, "run `make docs`"
    assert text.count("<!-- generated:") == text.count("<!-- end -->")


def _not_installed() -> list[str]:
    missing = []
    for wanted in generate.requirements().values():
        for name, _ in wanted:
            try:
                importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                missing.append(name)
    return missing


def test_every_part_is_shown_somewhere() -> None:
    shown = set(re.findall(r"<!-- generated: ([a-z-]+) -->", "".join(p.read_text() for p in PAGES)))
    assert shown == set(generate.PARTS)


def test_no_setting_reason_or_view_is_without_a_meaning() -> None:
    assert set(generate.REASONS_SAID) == {reason.value for reason in models.Reason}
    for row in generate.part_settings().splitlines()[2:]:
        assert row.split(" | ")[2].strip(" |"), row
    assert set(generate.SETTINGS_SAID) <= set(Settings.model_fields)
    for metrics in (generate.part_metrics(), generate.role_metrics("sink")):
        for row in metrics.splitlines()[2:]:
            assert row.rstrip(" |").rpartition(" | ")[2], row


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in _anchors(file), f"{page.name}: {target}"


def _anchors(page: Path) -> set[str]:
    """Anchors of headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_readiness_codes_are_all_explained() -> None:
    tree = ast.parse((ROOT / "pipeline/web/health.py").read_text())
    codes = {
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Reason"
        and isinstance(node.args[0], ast.Constant)
    }
    page = (ROOT / "docs/operators.md").read_text()
    section = page[page.index("The reasons of a worker") : page.index("## Metrics")]
    assert set(re.findall(r"^\| `([a-z]+)` \|", section, re.MULTILINE)) == codes


# --- commands ---------------------------------------------------------------------------------


def _command_lines() -> list[tuple[str, str]]:
    """Each ``runnerstream ...`` in a block of shell or between backticks, and where it stands."""
    found = []
    for block in _of("sh"):
        for line in block.text.splitlines():
            if "runnerstream" in (words := shlex.split(line, comments=True)):
                command = words[words.index("runnerstream") :]
                found.append((str(block), shlex.join(command)))
    for name, page in zip(NAMES, PAGES, strict=True):
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        found += [(name, match) for match in re.findall(r"`(runnerstream [a-z][^`]*)`", text)]
    # Once, however often it is told.
    return sorted({line: (where, line) for where, line in sorted(found)}.values())


@pytest.mark.parametrize(("where", "line"), _command_lines())
def test_commands_exist_with_their_options(where: str, line: str) -> None:
    words = shlex.split(line)[1:]
    command: click.Command = main
    path = []
    while words and isinstance(command, click.Group):
        name = words.pop(0)
        assert name in command.commands, f"{where}: {line}"
        command = command.commands[name]
        path.append(name)
    result = CliRunner().invoke(main, [*path, "--help"])
    assert result.exit_code == 0, result.output
    if isinstance(command, click.Group):
        assert not words, f"{where}: {line}"
        return
    for word in words:
        if word.startswith("--"):
            assert re.search(rf"{word}\b", result.output), f"{where}: {line}: {word}"
    reasons = [words[i + 1] for i, word in enumerate(words) if word == "--reason"]
    if path[0] == "dead-letters":
        assert set(reasons) <= {reason.value for reason in models.Reason}


def test_settings_that_pages_name_exist() -> None:
    known = {f"RUNNERSTREAM_{name.upper()}" for name in Settings.model_fields}
    for name, page in zip(NAMES, PAGES, strict=True):
        named = set(re.findall(r"\bRUNNERSTREAM_[A-Z_]+\b", page.read_text()))
        assert named <= known | {"RUNNERSTREAM_CONFIG", brokers.VARIABLE}, name


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_help_lists_what_pages_name() -> None:
    told = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    targets = set(re.findall(r"^  make ([\w-]+)", told, re.MULTILINE))
    # With their first argument only, which is the target.
    named = set()
    for page in PAGES:
        named |= set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE))
    assert {"demo", "test"} <= named <= targets
    makefile = (ROOT / "Makefile").read_text()
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_continuous_integration_runs_the_test_command_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    section = readme[readme.index("## Test it") :]
    match = re.search(r"```sh\n(.+)\n```", section)
    assert match is not None
    script = (ROOT / ".ci/run").read_text()
    program, target = match.group(1).split()
    assert re.search(
        rf"RUNNERSTREAM_TEST_BROKER=kafka {program} .*\b{target}$", script, re.MULTILINE
    )


def test_constraints_pin_every_dependency() -> None:
    pinned = generate.pinned()
    for wanted in generate.requirements().values():
        for name, _ in wanted:
            assert name in pinned, f"{name}: run `make constraints`"


# --- examples ---------------------------------------------------------------------------------


EXAMPLES = [block for block in _of("sh") if "runnerstream post <<" in block.text]


def _posted(block: Block) -> dict[str, Any]:
    """The record that a block posts, as the shell makes it now."""
    script = f"runnerstream() {{ cat; }}\n{block.text}"
    made = subprocess.run(["sh", "-eu", "-c", script], capture_output=True, check=True).stdout
    record: dict[str, Any] = json.loads(made)
    return record


@pytest.mark.parametrize("block", EXAMPLES, ids=str)
def test_examples_are_understood_and_of_now(block: Block) -> None:
    told = _posted(block)
    value = json.dumps(told).encode()
    if told["kind"] in models.Delivery.KINDS:
        facts, _ = webhook_facts(value)
        record: Any = read(models.DELIVERY, value)
    else:
        facts, fleet, _ = lifecycle_facts(value)
        record = read(models.LIFECYCLE, value)
        assert (fleet is not None) is bool(record.runner.name or record.runner_host)
    # What is said of a runner or a host concerns its fleet, and no job.
    of_a_fleet = told["kind"] in models.RUNNER_KINDS
    assert (record.key in {fact.key for fact in facts}) is not of_a_fleet
    # Whenever it is read: a fixed time would be too old for windows, tables and pages one day.
    now = time.time() * 1000
    assert all(
        now - 120_000 <= at <= now + 1_000 for at in (record.occurred_at, record.received_at)
    )
    assert not re.search(r"\b20\d\d-\d\d-\d\d|\b1[5-9]\d{11}\b", block.text)


def test_there_is_an_example_of_every_lifecycle_kind() -> None:
    shown = {_posted(block)["kind"] for block in EXAMPLES}
    assert {kind.value for kind in models.LifecycleKind} < shown
    assert not _of("json")  # a record with fixed times is no example


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[brokers.Broker]:
    with brokers.broker(tmp_path_factory.mktemp("broker")) as running:
        apply({"bootstrap_servers": running.bootstrap}, catalogue(partitions=PARTITIONS))
        yield running


def _records(bootstrap: str, topic: str) -> list[Any]:
    where = [TopicPartition(topic, p) for p in range(PARTITIONS)]
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    try:
        consumer.assign(where)
        ends = consumer.end_offsets(where)
        found: list[Any] = []
        while any(consumer.position(tp) < ends[tp] for tp in where):
            for records in consumer.poll(timeout_ms=500).values():
                found += records
        return found
    finally:
        consumer.close()


def test_python_blocks_run(broker: brokers.Broker) -> None:
    blocks = [block for block in _of("python") if block not in TELEMETRY]
    assert len(blocks) == 3
    for block in blocks:
        assert "localhost:9092" in block.text
        code = block.text.replace("localhost:9092", broker.bootstrap)
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
            timeout=PATIENCE * 60, check=False,
        )  # fmt: skip
        assert result.returncode == 0, f"{block}\n{result.stderr}"
    events = [read(models.LIFECYCLE, each.value) for each in _records(broker.bootstrap, LIFECYCLE)]
    assert _kinds(events, "4711") == ["job.queued", "job.claimed", "job.minted", "job.started"]
    assert _kinds(events, "4714") == ["job.claimed", "job.started", "job.completed"]
    assert len(events) == 7
    for record in _records(broker.bootstrap, LIFECYCLE):
        lifecycle_facts(record.value)
    (webhook,) = _records(broker.bootstrap, WEBHOOKS)
    facts, _ = record_facts(webhook)
    assert [fact.key for fact in facts] == ["github:github.com:4712"]


def _chapter(page: str, heading: str) -> list[Block]:
    """The blocks of a chapter."""
    text = (ROOT / page).read_text(encoding="utf-8")
    first = text[: text.index(f"\n{heading}\n") + 1].count("\n") + 1
    last = text[: text.index("\n## ", text.index(f"\n{heading}\n") + 1)].count("\n") + 1
    return [block for block in BLOCKS if block.page == page and first <= block.line <= last]


TELEMETRY = _chapter("docs/producers.md", "## Telemetry")


def test_telemetry_of_each_family_can_be_told_as_shown(tmp_path: Path) -> None:
    programs = [block.text for block in TELEMETRY if block.language == "python"]
    assert len(programs) == len(FAMILIES)
    assert all("localhost:9092" in text for text in programs)
    with brokers.broker(tmp_path, "embedded") as broker:
        apply({"bootstrap_servers": broker.bootstrap}, catalogue(partitions=PARTITIONS))
        _run_chapter(broker, programs)


def _run_chapter(broker: brokers.Broker, programs: list[str]) -> None:
    """Run the programs at once, and each line of shell; each tells one event of its family."""
    code = "\n".join(programs).replace("localhost:9092", broker.bootstrap)
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
        timeout=PATIENCE * 60, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    told = [telemetry_record(each.value) for each in _records(broker.bootstrap, EVENTS)]
    families = [(output.key or b"").split(b"|")[0].decode() for output, _ in told]
    assert Counter(families) == Counter(dict.fromkeys(FAMILIES, 1))
    lines = [block.text for block in TELEMETRY if block.language == "sh"]
    assert len(lines) == len(FAMILIES)
    clean: dict[str, str | None] = {n: None for n in os.environ if n.startswith("RUNNERSTREAM_")}
    for line in lines:
        # In this process: starting one takes longer than all that it does.
        name, *arguments = shlex.split(line)
        told_by = CliRunner().invoke(
            main, arguments, env={**clean, "RUNNERSTREAM_KAFKA": broker.bootstrap}
        )
        assert (name, told_by.stdout) == ("runnerstream", "1 event told\n"), told_by.output
    told = [telemetry_record(each.value) for each in _records(broker.bootstrap, EVENTS)]
    families = [(output.key or b"").split(b"|")[0].decode() for output, _ in told]
    assert Counter(families) == Counter(dict.fromkeys(FAMILIES, 2))
    assert not [notes for _, notes in told if notes]


def test_what_is_urgent_of_telemetry_is_named() -> None:
    page = (ROOT / "docs/producers.md").read_text(encoding="utf-8")
    said = page[page.index("What ends or breaks something goes at once:") :].partition("The rest")[
        0
    ]
    violations = {f"reconciler.violation_{how}" for how in ("opened", "closed")}
    assert set(re.findall(r"`([\w.]+)`", said)) | violations == URGENT & MODELS.keys()


def _kinds(events: list[Any], job_id: str) -> list[str]:
    return [event.kind.value for event in events if event.job_id == job_id]


@pytest.fixture
def shell(broker: brokers.Broker, tmp_path: Path) -> Callable[[Block], str]:
    """Runs a block as a newcomer does, with the program in the path; what it prints."""
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "runnerstream"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m pipeline.cli "$@"\n')
    program.chmod(0o755)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("RUNNERSTREAM_")}
    env = {
        **inherited,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "RUNNERSTREAM_KAFKA": broker.bootstrap,
        "RUNNERSTREAM_PARTITIONS": str(PARTITIONS),
    }

    def run(block: Block) -> str:
        result = subprocess.run(
            ["sh", "-eu", "-c", block.text], cwd=ROOT, env=env, capture_output=True, text=True,
            timeout=PATIENCE * 60, check=False,
        )  # fmt: skip
        assert result.returncode == 0, f"{block}\n{result.stderr}"
        return result.stdout

    return run


def test_what_a_shell_emits_is_on_the_topic(
    broker: brokers.Broker, shell: Callable[[Block], str]
) -> None:
    shown = [block for block in _of("sh") if "runnerstream emit" in block.text]
    (block,) = (block for block in shown if block not in TELEMETRY)
    assert shell(block).splitlines() == ["1 event told", "2 events told"]
    events = [read(models.LIFECYCLE, each.value) for each in _records(broker.bootstrap, LIFECYCLE)]
    assert _kinds(events, "4715") == ["job.claimed", "job.started", "job.completed"]


def test_what_is_scraped_is_on_the_topic(
    broker: brokers.Broker, shell: Callable[[Block], str]
) -> None:
    (block,) = (block for block in _of("sh") if "runnerstream scrape" in block.text)
    page = (ROOT / "tests" / "data" / "act_runner.metrics").read_bytes()

    class Runner(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page)

    with ThreadingHTTPServer(("127.0.0.1", 0), Runner) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        there = f"127.0.0.1:{server.server_port}"
        assert "127.0.0.1:9101" in block.text
        said = shell(block._replace(text=block.text.replace("127.0.0.1:9101", there)))
        server.shutdown()
    assert said == f"http://{there}/metrics: read; runner {there} of fleet linux-small\n"
    told = [read(EVENT, each.value) for each in _records(broker.bootstrap, EVENTS)]
    assert {each.kind for each in told} == {"runner.info", "runner.status", "runner.scrape"}
    assert {each.fleet for each in told} == {"linux-small"}


def test_what_examples_post_is_found(broker: brokers.Broker, shell: Callable[[Block], str]) -> None:
    """A newcomer's way: post each as printed, then look for the job."""
    with WorkerProcess(broker.bootstrap, role="fold", partitions=PARTITIONS) as worker:
        for block in EXAMPLES:
            assert "1 record posted to runners." in shell(block)
        worker.wait_ready(90)
        keys = {_posted(block)["key"] for block in EXAMPLES}
        hooked, key = sorted((key for key in keys if key.startswith("github:")), reverse=True)
        found: dict[str, Any] = {}

        def completed() -> bool:
            answer = ask(worker.url, f"/jobs/{key}")
            found.clear()
            found.update(answer if answer.status == 200 else {})
            return bool(found.get("status") == "completed")

        worker.wait(completed, 60, f"show {key} completed")
        waiting = ask(worker.url, f"/jobs/{hooked}")
    assert (waiting.status, waiting["status"]) == (200, "queued")
    assert 0 <= waiting["age_ms"] < 300_000
    # Queued a minute and a half ago, and not in another month.
    now = time.time() * 1000
    assert now - 300_000 < found["queued_at"] < found["completed_at"] < now
    assert found["conclusion"] == "success"
    assert found["runner"] == "vm-17"
    # Each is of its own reading, so the time between them is in it.
    assert 95_000 <= found["timings"]["total"]["ms"] < 200_000


# --- SQL --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedClickHouse]:
    if reason := unavailable():
        pytest.skip(reason)
    with _WithUsers(tmp_path_factory.mktemp("clickhouse")) as server:
        schema.apply(server.url)
        yield server


class _WithUsers(EmbeddedClickHouse):
    """A server with the users of the page. The embedded one cannot make users by SQL, so they come
    from its configuration: with the page's own grants and settings."""

    def _write_configuration(self) -> None:
        super()._write_configuration()
        profiles = users = ""
        for name in ("runnerstream_writer", "runnerstream_reader"):
            (made,) = (text for text in USERS if re.match(rf"CREATE USER .*\b{name}\b", text))
            grants = [text for text in USERS if re.match(rf"GRANT .* TO {name}$", text)]
            password = re.search(r"IDENTIFIED BY '(.*?)'", made)
            assert password is not None
            settings = re.findall(r"(\w+) = (\w+)", made)
            profiles += f"<{name}>{''.join(f'<{k}>{v}</{k}>' for k, v in settings)}</{name}>"
            queries = "".join(
                f"<query>{grant.removesuffix(f' TO {name}')}</query>" for grant in grants
            ).replace("runnerstream.*", "fresh.*")
            users += (
                f"<{name}><password>{password.group(1)}</password><profile>{name}</profile>"
                f"<networks><ip>127.0.0.1</ip></networks><quota>default</quota>"
                f"<grants>{queries}</grants></{name}>"
            )
        file = self.directory / "users.xml"
        text = file.read_text().replace("</profiles>", f"{profiles}</profiles>")
        file.write_text(text.replace("</users>", f"{users}</users>"))


def _statements(block: Block) -> list[str]:
    return [each.strip() for each in block.text.split(";") if each.strip()]


(_USERS_BLOCK,) = (block for block in _of("sql") if "CREATE USER" in block.text)
USERS = [" ".join(statement.split()) for statement in _statements(_USERS_BLOCK)]


@pytest.mark.parametrize("block", {each.text: each for each in _of("sql")}.values(), ids=str)
def test_sql_blocks_run(block: Block, clickhouse: EmbeddedClickHouse) -> None:
    with Client.from_url(clickhouse.url) as client:
        for statement in _statements(block):
            if re.match("CREATE USER|CREATE SETTINGS PROFILE|GRANT", statement):
                client.execute("SELECT formatQuery(%(sql)s)", {"sql": statement})
            else:
                client.execute(statement)


def test_the_users_of_the_page_can_do_what_they_must(clickhouse: EmbeddedClickHouse) -> None:
    with Client.from_url(clickhouse.url) as client:
        client.execute(USERS[0].replace("EXISTS runnerstream ", "EXISTS fresh "))
    writer = f"clickhouse://runnerstream_writer:secret@127.0.0.1:{clickhouse.port}/fresh"
    assert len(schema.apply(writer).applied) == len(schema.migrations())
    assert schema.pending(writer) == ()
    with Client.from_url(writer) as client:
        # Without a time it would be too old to be kept.
        client.execute("INSERT INTO jobs (key, rev, received_at) SELECT 'a', 1, now64(3)")
    reader = f"clickhouse://runnerstream_reader:another%20secret@127.0.0.1:{clickhouse.port}/fresh"
    with Client.from_url(reader) as client:
        assert client.execute("SELECT key FROM jobs_latest") == [("a",)]
        with pytest.raises(ServerException):
            client.execute("INSERT INTO jobs (key, rev) SELECT 'b', 1")
        with pytest.raises(ServerException):
            client.execute("SELECT number FROM system.numbers LIMIT 200000")
