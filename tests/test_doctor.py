"""``doctor``: what it calls ok is ours and is ok, and what it says to do can be done."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from clickhouse_driver.errors import ServerException
from kafka import KafkaProducer
from pydantic import SecretStr

from pipeline.cli import main
from pipeline.commands import doctor as module
from pipeline.commands.connections import beside_a_demo
from pipeline.commands.doctor import examine
from pipeline.commands.sql import server_failure
from pipeline.local import EmbeddedClickHouse, unavailable
from pipeline.roles import ROLES
from pipeline.settings import Settings, load
from sinks.config import SinkConfig
from tests.support.brokers import broker, kind
from tests.support.toy_role import COOK
from tests.support.worker import ROOT
from topics.apply import apply
from topics.catalogue import JOBS, WEBHOOKS, catalogue

needs_local = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
SOURCES = sorted((ROOT / "pipeline").rglob("*.py")) + sorted((ROOT / "sinks").glob("*.py"))
_COMMAND = re.compile(r"`(runnerstream [^`]*)`")


def run(*arguments: str, **settings: str) -> Any:
    env: dict[str, str | None] = {n: None for n in os.environ if n.startswith("RUNNERSTREAM_")}
    env |= {f"RUNNERSTREAM_{name.upper()}": value for name, value in settings.items()}
    return CliRunner().invoke(main, arguments, env=env)


def texts(path: Path) -> Iterator[tuple[str, str]]:
    """Every text in a module with where it stands; what an f-string puts in is ``X``."""
    tree = ast.parse(path.read_text())
    pieces = {id(p) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for p in n.values}
    for node in ast.walk(tree):
        where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.JoinedStr):
            parts = (p.value if isinstance(p, ast.Constant) else "X" for p in node.values)
            yield where, "".join(map(str, parts))
        elif id(node) in pieces:
            continue
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield where, node.value


def parse(line: str) -> None:
    """Parse a command line with the program's own parser. Raises click.UsageError."""
    words = shlex.split(line)[1:]
    command: click.Command = main
    context = click.Context(main)
    if words[0] == "--config":
        words = words[2:]
    while isinstance(command, click.Group):
        if not words:
            return  # a group, named as such
        _, found, words = command.resolve_command(context, words)
        assert found is not None
        command = found
    command.make_context(line, words, parent=context)


NAMED = sorted(
    {
        (line, where)
        for path in SOURCES
        for where, text in texts(path)
        for line in _COMMAND.findall(text)
        if path.name != "cli.py"
    }
)


def test_there_are_remedies() -> None:
    assert len({line for line, _ in NAMED}) >= 8


@pytest.mark.parametrize(("line", "where"), NAMED)
def test_each_command_that_is_named_exists_with_its_options(line: str, where: str) -> None:
    parse(line.replace(" X", " fold") if "--role" in line else line)


def test_a_command_that_does_not_exist_would_be_found() -> None:
    for line in ("runnerstream doctor --url x", "runnerstream topic apply", "runnerstream sql --x"):
        with pytest.raises(click.UsageError):
            parse(line)


def test_each_setting_that_is_named_exists() -> None:
    known = {f"RUNNERSTREAM_{name.upper()}" for name in Settings.model_fields}
    known |= {"RUNNERSTREAM_CONFIG", "RUNNERSTREAM_NAME", "RUNNERSTREAM_TEST_", "RUNNERSTREAM_"}
    for path in SOURCES:
        for where, text in texts(path):
            named = set(re.findall(r"\bRUNNERSTREAM_\w*", text.replace("RUNNERSTREAM_X", "")))
            assert named <= known, where


def test_doctor_names_no_option_outside_of_a_command() -> None:
    for where, text in texts(Path(module.__file__)):
        if text != "--json":  # its own
            assert not re.search(r"(?<!\w)--[a-z]", _COMMAND.sub("", text)), where
    result = run("doctor", kafka="127.0.0.1:1", clickhouse="clickhouse://127.0.0.1:1/x",
                 web_port="1", sink_port="1")  # fmt: skip
    assert result.exit_code == 3
    assert "--" not in _COMMAND.sub("", result.output)


@needs_local
def test_what_it_says_to_do_helps(tmp_path: Path) -> None:
    with broker(tmp_path / "broker") as kafka, EmbeddedClickHouse(tmp_path / "house") as house:
        options = {"kafka": kafka.bootstrap, "clickhouse": house.url, "partitions": "2",
                   "web_port": "1", "sink_port": "1"}  # fmt: skip
        for _ in range(3):
            told = json.loads(run("doctor", "--json", **options).stdout)
            wrong = {f["what"]: f for f in told if f["state"] == "bad"}
            todo = [line for what in ("topics", "tables") if what in wrong
                    for line in _COMMAND.findall(wrong[what]["todo"])]  # fmt: skip
            if not todo:
                break
            for line in todo:
                result = run(*shlex.split(line)[1:], **options)
                assert result.exit_code == 0, result.output
        states = {f["what"]: f["state"] for f in told}
        assert (states["topics"], states["tables"], states["ClickHouse"]) == ("ok", "ok", "ok")
        assert states["dead letters"] == "ok"
        # A table that somebody dropped.
        house.query("DROP TABLE runnerstream.gauges SYNC")
        told = json.loads(run("doctor", "--json", **options).stdout)
        (found,) = (f for f in told if f["what"] == "tables")
        assert (found["state"], "gauges" in found["told"]) == ("bad", True)
        (line,) = _COMMAND.findall(found["todo"])
        assert run(*shlex.split(line)[1:], **options).exit_code == 0
        told = json.loads(run("doctor", "--json", **options).stdout)
        assert {f["state"] for f in told if f["what"] == "tables"} == {"ok"}


# -- partitions ------------------------------------------------------------------------------------


def test_another_number_of_partitions(tmp_path: Path) -> None:
    with broker(tmp_path) as kafka:
        options = {"bootstrap_servers": kafka.bootstrap}
        specs = catalogue(partitions=3)
        raised = [replace(s, partitions=5) if s.name == WEBHOOKS else s for s in specs]
        apply(options, raised)
        settings = {"kafka": kafka.bootstrap, "clickhouse": "", "web_port": "1"}
        # One topic was raised: its further partitions are not read, and it says how to go on.
        told = json.loads(run("doctor", "--json", partitions="3", **settings).stdout)
        (found,) = (f for f in told if f["what"] == "topics" and f["state"] == "bad")
        assert f"{WEBHOOKS} has 5; the settings say 3" in found["told"]
        assert f"records on the further partitions of {WEBHOOKS} are not read" in found["told"]
        page, heading = re.findall(r'(docs/\S+\.md), "(.*?)"', found["todo"])[0]
        assert f"### {heading}\n" in (ROOT / page).read_text()


def test_settings_that_say_another_number_than_all_topics(tmp_path: Path) -> None:
    with broker(tmp_path) as kafka:
        apply({"bootstrap_servers": kafka.bootstrap}, catalogue(partitions=3))
        settings = {"kafka": kafka.bootstrap, "clickhouse": "", "web_port": "1"}
        told = json.loads(run("doctor", "--json", partitions="8", **settings).stdout)
        (found,) = (f for f in told if f["what"] == "topics" and f["state"] == "bad")
        (setting,) = re.findall(r"RUNNERSTREAM_(\w+=\d+)", found["todo"])
        name, _, value = setting.lower().partition("=")
        told = json.loads(run("doctor", "--json", **{**settings, name: value}).stdout)
        assert {f["state"] for f in told if f["what"] == "topics"} == {"ok"}


def test_the_group_of_every_role_that_is_declared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ROLES, COOK.name, COOK)
    with broker(tmp_path) as kafka:
        options = {"bootstrap_servers": kafka.bootstrap}
        apply(options, catalogue(partitions=3))
        sender = KafkaProducer(**options)
        sender.send(JOBS, b"{}", partition=0).get(30)
        sender.close()
        settings = {"kafka": kafka.bootstrap, "clickhouse": "", "web_port": "1", "partitions": "3"}
        told = {f["what"]: f for f in json.loads(run("doctor", "--json", **settings).stdout)}
    assert told["cook group"]["told"].startswith("group runnerstream-cook: 1 records behind")
    # The embedded broker does not tell that nobody is in a group.
    todo = "`runnerstream worker --role cook`" if kind() == "kafka" else ""
    assert told["cook group"]["todo"] == todo
    assert "sink group" not in told, "there is no ClickHouse to write to"


# -- whose worker, whose sink ----------------------------------------------------------------------


@contextmanager
def answering(pages: dict[str, dict[str, Any]]) -> Iterator[int]:
    """An HTTP server with these JSON pages; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = pages.get(self.path.partition("?")[0])
            body = json.dumps(page).encode()
            self.send_response(404 if page is None else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    try:
        yield int(served.server_address[1])
    finally:
        served.shutdown()
        served.server_close()


def settings_of(**values: Any) -> Settings:
    return load(environment=False, **{"kafka": "127.0.0.1:1", "web_port": 1, **values})


def found_of(settings: Settings, what: str) -> Any:
    return next(f for f in examine(settings) if f.what == what)


@pytest.mark.parametrize(
    ("differs", "says"),
    [
        ({}, ""),
        ({"app_id": "other"}, "its group is other-sink"),
        ({"kafka": "127.0.0.1:2"}, "its Kafka is 127.0.0.1:2"),
        ({"clickhouse": "clickhouse://127.0.0.1:1/other"}, "its ClickHouse is 127.0.0.1:1/other"),
    ],
)
def test_the_sink_of_another_deployment_is_not_ours(differs: dict[str, str], says: str) -> None:
    url = "clickhouse://me:s3cret@127.0.0.1:1/ours"
    theirs = ROLES["sink"].deployment(settings_of(**{"clickhouse": url, **differs}))
    assert "s3cret" not in str(theirs)
    page = {"ready": True, "partitions": 6, "deployment": theirs}
    with answering({"/readyz": page}) as port:
        found = found_of(settings_of(clickhouse=url, sink_port=port), "sink")
    if says:
        assert found.state == "bad"
        assert "another deployment" in found.told
        assert says in found.told
    else:
        assert found.state == "ok"


@pytest.mark.parametrize("page", [{"ready": True, "partitions": 6}, {"status": "up"}])
def test_what_does_not_say_whose_it_is_is_not_ok(page: dict[str, Any]) -> None:
    with answering({"/readyz": page}) as port:
        found = found_of(
            settings_of(clickhouse="clickhouse://127.0.0.1:1/x", sink_port=port), "sink"
        )
    assert found.state == "bad"


def test_the_worker_of_another_deployment_is_not_ours() -> None:
    ready = {"ready": True, "reasons": [], "tick_lag_s": 1.0}
    workers = {"group": "other", "now": 0, "incomplete": []}
    with answering({"/readyz": ready, "/workers": workers}) as port:
        found = found_of(settings_of(clickhouse="", web_port=port), "worker")
        assert found.state == "bad"
        assert "its app_id is other, ours runnerstream" in found.told
        assert found_of(settings_of(clickhouse="", web_port=port, app_id="other"), "worker").state \
            == "ok"  # fmt: skip


# -- two deployments with one app_id -----------------------------------------------------------


def test_sinks_that_write_elsewhere_are_told() -> None:
    config = SinkConfig({}, "clickhouse://u:s%40cret@one:9000/runs", "g")
    assert config.client_id == "g@one:9000/runs"
    other = replace(config, clickhouse_url="clickhouses://two:9440/runs/?secure=1").client_id
    # An earlier release says nothing of it.
    assert not list(module._apart("g", "one:9000/runs", [config.client_id, "g"]))
    (finding,) = module._apart("g", "one:9000/runs", [config.client_id, other])
    assert finding.state == "look"
    assert "one:9000/runs, two:9440/runs;" in finding.told


def test_beside_a_demo_the_way_to_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    refused = ServerException("default: Not enough privileges", 497)
    assert beside_a_demo(Settings()) == ""
    file = tmp_path / "runnerstream" / "demo" / "env"
    file.parent.mkdir(parents=True)
    file.touch()
    told = beside_a_demo(Settings())
    assert str(file) in told
    assert server_failure(refused, False, told).remedy == told
    assert beside_a_demo(Settings(clickhouse=SecretStr("clickhouse://ch:9000/runs"))) == ""
