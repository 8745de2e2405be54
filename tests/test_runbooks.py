"""Runbooks: one for each alert, all alike, and whatever they tell to ask can be asked.

Their SQL and links are tried by tests/test_docs.py, with those of all pages.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dashboards.alerts import ALERTS, GROUPS, SQL_ALERTS
from pipeline.cli import main
from pipeline.local import EmbeddedClickHouse
from sinks import schema
from tests.support import brokers
from tests.support.clients import ClientUnavailable
from tests.support.prometheus import promtool
from tests.test_alerts import exported
from tests.test_docs import ROOT, Block, _of
from topics.apply import apply
from topics.catalogue import catalogue

RUNBOOKS = ROOT / "docs" / "runbooks"
PAGES = sorted(path for path in RUNBOOKS.glob("*.md") if path.name != "README.md")
HEADINGS = ["Meaning", "Impact", "Confirm", "What to do", "How it ends"]
#: Commands that need no worker: only Kafka and ClickHouse, which may be empty.
WITHOUT_WORKER = ("schema show", "topics show", "dead-letters list")


def blocks(language: str) -> list[Block]:
    return [block for block in _of(language) if block.page.startswith("docs/runbooks/")]


def test_every_alert_has_a_page_and_every_page_an_alert() -> None:
    assert {path.stem for path in PAGES} == {*ALERTS, *SQL_ALERTS}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.stem))
def test_every_page_answers_the_same_questions(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"^# (.*)$", text, re.MULTILINE)[0] == page.stem
    parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)[1:]
    assert parts[::2] == HEADINGS
    said = dict(zip(parts[::2], parts[1::2], strict=True))
    assert all(said[heading].rstrip().endswith((".", "?", "```")) for heading in HEADINGS)
    # Something can be asked, and something be done.
    assert "```" in said["Confirm"] or re.search(r"`/[a-z]+`", said["Confirm"])
    assert said["What to do"].lstrip().startswith("1. ")


def commands() -> list[tuple[str, list[str]]]:
    """Each command in a block of shell or between backticks, and where it stands."""
    found = []
    for block in blocks("sh"):
        for line in block.text.splitlines():
            if (words := shlex.split(line))[:1] == ["runnerstream"]:
                found.append((str(block), words[1:]))
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for match in re.findall(r"`runnerstream ([a-z][^`]*)`", text):
            found.append((page.stem, shlex.split(match)))
    return found


def test_commands_are_understood() -> None:
    """By the program's own parser: each option and argument, with its value."""
    seen = set()
    for where, words in commands():
        command, rest = main, list(words)
        path = []
        while isinstance(command, click.Group) and rest:
            assert rest[0] in command.commands, where
            path.append(rest[0])
            command = command.commands[rest.pop(0)]
        assert not isinstance(command, click.Group), where
        command.make_context(" ".join(path), rest)
        seen.add(" ".join(path))
    assert {"doctor", "jobs", "explain", "recovery status", "topics show"} <= seen


def test_commands_that_need_no_worker_run(server: EmbeddedClickHouse, tmp_path: Path) -> None:
    schema.apply(server.url)
    clean: dict[str, str | None] = {n: None for n in os.environ if n.startswith("RUNNERSTREAM_")}
    some = {line for _, words in commands() if (line := " ".join(words)).startswith(WITHOUT_WORKER)}
    assert all(any(line.startswith(start) for line in some) for start in WITHOUT_WORKER)
    with brokers.broker(tmp_path, "embedded") as broker:
        apply({"bootstrap_servers": broker.bootstrap}, catalogue(partitions=1))
        env = {
            **clean,
            "RUNNERSTREAM_KAFKA": broker.bootstrap,
            "RUNNERSTREAM_CLICKHOUSE": server.url,
            "RUNNERSTREAM_PARTITIONS": "1",
        }
        for line in sorted(some):
            told = CliRunner().invoke(main, shlex.split(line), env=env)
            assert told.exit_code == 0, f"{line}: {told.output}"


def test_pages_of_the_program_exist() -> None:
    source = "".join(path.read_text() for path in (ROOT / "pipeline" / "web").glob("*.py"))
    for page in PAGES:
        for path in re.findall(r"`(/[a-z]+)`", page.read_text()):
            assert f'"{path}"' in source, f"{page.stem}: {path}"


def test_questions_to_prometheus_can_be_asked(tmp_path: Path) -> None:
    known = exported() | {each.name for group in GROUPS for each in group.recordings}
    asked = [block.text.strip() for block in blocks("promql")]
    assert len(asked) > 40
    for text in asked:
        names = set(re.findall(r"(?:\w+:)?\b(?:runnerstream|process)_\w+(?::\w+)?", text))
        assert names <= known, text
    rules = [{"record": f"asked:{n}", "expr": text} for n, text in enumerate(asked)]
    file = tmp_path / "asked.json"
    file.write_text(json.dumps({"groups": [{"name": "asked", "rules": rules}]}))
    try:
        code, said = promtool("check", "rules", str(file))
    except ClientUnavailable as missing:
        pytest.skip(str(missing))
    assert code == 0, said
