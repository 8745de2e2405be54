"""The executor as a role of a worker: what the settings make of it."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pipeline.executor import GitHub, Hook, Redeliver
from pipeline.roles import RoleFailed, wanted
from pipeline.roles.executor import EXECUTOR, executor_of, via_of, way_of
from pipeline.roles.supervisor import command as child_of
from pipeline.settings import load
from tests.support.executors import command
from topics.recovery import CommandKind

APP_ID = "doing"
SECRET = "hush-hush"


@pytest.fixture
def secret(tmp_path: Path) -> str:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    return str(file)


def test_a_worker_has_an_executor_when_the_settings_say_in_which_way() -> None:
    without = load(environment=False)
    assert [role.name for role in wanted(without)] == ["fold", "sink", "prober"]
    assert [role.name for role in wanted(load(environment=False, executor_via="print"))] == [
        "fold", "sink", "prober", "executor",
    ]  # fmt: skip
    with pytest.raises(RoleFailed, match="RUNNERSTREAM_EXECUTOR_VIA"):
        way_of(without)


def test_each_way_is_made_as_the_settings_say(secret: str) -> None:
    def made(**settings: Any) -> Any:
        found = load(environment=False, app_id=APP_ID, **settings)
        way = way_of(found)
        assert SECRET not in repr(way)
        return via_of(way, found, threading.Event())

    posted = {"executor_to": "http://127.0.0.1:1/x", "executor_secret_file": secret}
    assert made(executor_via="print") is None
    assert isinstance(made(executor_via="hook", **posted), Hook)
    assert isinstance(made(executor_via="redeliver", **posted), Redeliver)
    acting = {"executor_allow": "cancel_run, rerun_job", "executor_token_file": secret}
    github = made(executor_via="github", github_host="ghe.corp", **acting)
    assert isinstance(github, GitHub)
    assert github.cannot(command(CommandKind.CLOSE)) == "other_host"
    # The group is that of the program with the same way.
    settings = load(environment=False, app_id=APP_ID, executor_via="hook")
    assert EXECUTOR.group(settings) == f"{APP_ID}-executor-hook"
    assert settings.member_options()["session_timeout_ms"] == 30_000


def test_it_takes_the_commands_that_are_named() -> None:
    settings = load(environment=False, executor_via="print", executor_only="close,requeue")
    made = executor_of(settings, threading.Event())
    assert made.config.only == {CommandKind.CLOSE, CommandKind.REQUEUE}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"executor_via": "hook"}, "EXECUTOR_TO"),
        ({"executor_via": "hook", "executor_to": "http://x"}, "EXECUTOR_SECRET_FILE"),
        ({"executor_via": "redeliver", "executor_to": "http://x", "executor_secret_file": "/no"},
         "No such file"),
        ({"executor_via": "hook", "executor_to": "http://x", "executor_secret_file": "/dev/null"},
         "is empty"),
        ({"executor_via": "github"}, "EXECUTOR_ALLOW"),
        ({"executor_via": "github", "executor_allow": "all"}, "EXECUTOR_ALLOW"),
        ({"executor_via": "github", "executor_allow": "rerun_job"}, "EXECUTOR_TOKEN_FILE"),
        ({"executor_via": "print", "executor_only": "close,shut"}, "EXECUTOR_ONLY"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_missing_is_told_by_its_name(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(RoleFailed, match=named):
        executor_of(load(environment=False, **wrong), threading.Event())


@pytest.mark.parametrize("wrong", [{"executor_via": "mail"}, {"executor_to": "ftp://x"}], ids=str)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="executor_"):
        load(environment=False, **wrong)


def test_a_child_is_told_the_ports_of_whom_it_asks() -> None:
    told = child_of("executor", ["-v"], [("--web-port", 7), ("--executor-port", 8)])
    assert told[:2] == [sys.executable, "-m"]
    assert told[-8:] == [
        "worker", "--role", "executor", "--until-stdin-closes", "--web-port", "7",
        "--executor-port", "8",
    ]  # fmt: skip
