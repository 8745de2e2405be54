"""The soak in small: a day with kills, on real processes; and that its judge would notice."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.providers.base import sign_sha256
from tests.soak.day import SECRET, Day, Job, Pace
from tests.soak.run import Mode, soak
from tests.support.clock import FastClock
from tests.support.receivers import Got


@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("HYPOTHESIS_PROFILE") != "nightly",
    reason="takes more than a minute: nightly, or python -m tests.soak",
)
def test_a_day_with_kills_recovers_whatever_is_stuck_and_hits_nothing_alive(
    tmp_path: Path,
) -> None:
    mode = Mode("kills", workers=2, kill_every=4.0)
    report = soak(mode, tmp_path, jobs=160, hours=1.2, seed=7, pace=Pace(squeeze=48.0))
    assert report.failures == [], report.line()
    figures = report.figures
    assert figures["stalls true"] == figures["found"] > 30
    assert figures["kills"] >= 2
    assert figures["effects"] > 20
    # Every fault is there: what is closed is not what is requeued.
    assert figures["recovered"] > 15
    assert figures["closed"] > 3


@pytest.fixture
def day() -> Day:
    clock = FastClock.ago(3_600, 10)
    made = Day(1, 0, 1, clock, Pace(), lambda topic, key, said, at: None)
    made.api.close()
    for number, state in enumerate(("stuck", "pending", "running", "over"), 1):
        made.jobs[number] = Job(number, "linux", "orphan", 1, clock.ms(), state, 1)
    return made


def call(day: Day, number: int, **more: Any) -> int | None:
    """The dispatcher is told to requeue a job; the status of its answer."""
    command = {
        "id": f"requeue|{number}", "command": "requeue", "job_key": f"github:github.com:{number}",
        "dry_run": False, "expires_at": day.clock.ms() + 60_000, **more,
    }  # fmt: skip
    body = json.dumps(command).encode()
    headers = {"x-runnerstream-signature-256": sign_sha256(body, SECRET)}
    answer = day.hook(Got("POST", "/", headers, body))
    return None if answer is None else answer[0]


def until_done(day: Day, number: int, **more: Any) -> None:
    """Until it is acknowledged: the dispatcher is busy at times, or its answer is lost."""
    while call(day, number, **more) != 200:
        pass


def test_a_command_against_a_live_job_is_noticed(day: Day) -> None:
    until_done(day, 1)
    until_done(day, 4)
    assert day.wrong == []
    until_done(day, 2)
    until_done(day, 3)
    assert len(day.wrong) == 2
    assert all("hit a job that is" in each for each in day.wrong)


def test_a_command_that_comes_again_after_it_was_acknowledged_is_noticed(day: Day) -> None:
    until_done(day, 1)
    call(day, 1)
    assert day.wrong == ["requeue|1 came again after it was acknowledged"]


def test_a_command_that_is_dry_or_too_late_or_unsigned_is_noticed(day: Day) -> None:
    until_done(day, 1, dry_run=True)
    until_done(day, 4, expires_at=1)
    assert day.hook(Got("POST", "/", {}, b"{}")) == (401, b"", {})
    assert len(day.wrong) == 3
