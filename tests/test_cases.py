"""Inputs that once broke something, each with the value that is right.

Each file in ``data/cases`` is a delivery as ``runnerstream replay`` takes it.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.jobs import FleetNames, Job, View, merge, view
from pipeline.providers import facts
from pipeline.replay import deliveries
from pipeline.windows import contributions
from topics.models import JobFact

CASES = Path(__file__).parent / "data" / "cases"
#: 2026-11-25T10:00:00Z, a quarter of an hour after the latest of them.
NOW = 1_795_600_800_000
#: 2026-11-25T09:30:22Z, when most of these jobs were made.
CREATED = 1_795_599_022_000


def seen(*names: str) -> tuple[Job, View, Counter[tuple[str, str]]]:
    """What the deliveries in these files say together, in either order."""
    said = [facts(d) for name in names for d in deliveries(CASES / f"{name}.json", NOW)]
    jobs = []
    for order in (said, said[::-1]):
        job: Job | None = None
        for one in order:
            fact = one[0]
            assert isinstance(fact, JobFact)
            job = merge(job, fact)
        assert job is not None
        jobs.append(job)
    assert jobs[0] == jobs[1]
    odd = sum((one.odd for one in said), Counter[tuple[str, str]]())
    return jobs[0], view(jobs[0], FleetNames()), odd


#: Status, conclusion, and queue and run time in s, or why there is none.
RAN = ("completed", "success", 60, 180)


@pytest.mark.parametrize(
    ("name", "outcome", "odd"),
    [
        ("p03_surrogate_elsewhere", RAN, {}),
        (
            "p04_year9999",
            ("completed", "success", 60, "no_completed"),
            {("completed_at", "unusable"): 1},
        ),
        # Nobody says when it started, so neither wait nor run are known.
        (
            "p05_year0",
            ("completed", "success", "no_started", "no_started"),
            {("started_at", "unusable"): 1},
        ),
        ("p06_emptytime", ("running", None, 60, "pending"), {("completed_at", "unusable"): 1}),
        ("p07_emptystep", RAN, {("steps", "unusable"): 1}),
        ("p14_labels_nullitem", RAN, {("labels", "wrong_type"): 1}),
        # Not a number of nobody, so nothing says that nobody ran it.
        ("p15_runnerneg", RAN, {("runner_id", "unusable"): 1}),
        ("p20_ghes", RAN, {}),
        ("p20_ghes_upper", ("running", None, 60, "pending"), {}),
        ("p21_rename_a", ("running", None, 60, "pending"), {}),
        ("p21_rename_b", RAN, {}),
        ("p30_hostport", RAN, {}),
        ("r01_failure_norunner", ("completed", "failure", "not_started", "not_started"), {}),
        ("r03_timedout_norunner", ("completed", "timed_out", "not_started", "not_started"), {}),
        ("r04_neutral_norunner", ("completed", "neutral", "not_started", "not_started"), {}),
        ("s01_selfhosted_q", ("queued", None, "pending", "pending"), {}),
        ("s03_selfhosted_r", ("running", None, 60, "pending"), {}),
        ("s04_nolabels", ("queued", None, "pending", "pending"), {}),
        ("t01_tenant", RAN, {}),
    ],
)
def test_each_case_gives_its_right_value(
    name: str, outcome: tuple[Any, ...], odd: dict[tuple[str, str], int]
) -> None:
    _, told, found = seen(name)

    def value(family: str) -> Any:
        timing = told.timings[family]
        return timing.missing if timing.ms is None else timing.ms // 1000

    assert (told.status, told.conclusion, value("queue"), value("run")) == outcome
    assert found == odd


def test_every_case_has_a_right_value() -> None:
    marks = test_each_case_gives_its_right_value.pytestmark
    named = {case[0] for case in marks[0].args[1]}
    assert {path.stem for path in CASES.glob("*.json")} - named == {"t02_ping"}


@pytest.mark.parametrize("name", ["r01_failure_norunner", "r03_timedout_norunner",
                                  "r04_neutral_norunner"])  # fmt: skip
def test_what_never_ran_was_abandoned(name: str) -> None:
    _, told, _ = seen(name)
    body = json.loads((CASES / f"{name}.json").read_text())["workflow_job"]
    assert told.abandoned_ms == {"failure": 5_000}.get(body["conclusion"], 240_000)
    # It counts as ended, and enters no percentile.
    assert [(c.name, c.ms) for c in contributions(told)] == [(body["conclusion"], None)]


@pytest.mark.parametrize(
    ("changes", "ran"),
    [
        ({"runner_id": None, "runner_name": None}, False),
        ({"runner_id": "", "runner_name": " "}, False),
        ({"conclusion": "success"}, False),
        ({"steps": [{"name": "Set up job", "started_at": None}]}, False),
        ({"steps": [{"name": "Set up job", "started_at": "2026-11-25T09:37:36Z"}]}, True),
        ({"runner_name": "vm-1"}, True),
        ({"runner_id": 7}, True),
        # What cannot be read is no evidence of nobody.
        ({"steps": "none"}, True),
        ({"steps": [{"started_at": ""}]}, True),
        ({"runner_name": 0}, True),
    ],
)
def test_who_ran_it_is_told_by_evidence(changes: dict[str, Any], ran: bool) -> None:
    (delivery,) = deliveries(CASES / "r03_timedout_norunner.json", NOW)
    body = json.loads(delivery.payload)
    payload = json.dumps(body | {"workflow_job": body["workflow_job"] | changes})
    fact = facts(delivery.model_copy(update={"payload": payload}))[0]
    assert isinstance(fact, JobFact)
    told = view(merge(None, fact), FleetNames())
    assert (told.timings["run"].ms == 180_000) == ran
    assert (told.timings["run"].missing == "not_started") == (not ran)
    assert (told.abandoned_ms is None) == ran


def test_a_body_that_lacks_the_keys_still_ran() -> None:
    # Old GHES: neither steps nor a runner, and no word that there was none.
    (delivery,) = deliveries(CASES / "r03_timedout_norunner.json", NOW)
    body = json.loads(delivery.payload)
    for missing in (("steps",), ("runner_id", "runner_name"), ("steps", "runner_id")):
        job = {name: v for name, v in body["workflow_job"].items() if name not in missing}
        old = delivery.model_copy(update={"payload": json.dumps(body | {"workflow_job": job})})
        fact = facts(old)[0]
        assert isinstance(fact, JobFact)
        assert view(merge(None, fact), FleetNames()).timings["run"].ms == 180_000


def test_the_ghes_host_in_either_case_is_one_job() -> None:
    job, told, _ = seen("p20_ghes", "p20_ghes_upper")
    assert job.key == "github:ghe.corp.example:900020"
    assert (told.status, job.rev) == ("completed", 2)


def test_a_host_with_a_port_is_part_of_the_key() -> None:
    assert seen("p30_hostport")[0].key == "github:ghe.corp.example:8443:900030"


def test_a_tenant_has_its_own_host() -> None:
    assert seen("t01_tenant")[0].key == "github:octocorp.ghe.com:830001"


def test_the_later_name_of_a_repository_counts() -> None:
    assert seen("p21_rename_a", "p21_rename_b")[0].attributes.repo == "alpha/shop"


def test_self_hosted_alone_is_the_fleet_throughout() -> None:
    for names in (["s01_selfhosted_q"], ["s03_selfhosted_r"]):
        told = seen(*names)[1]
        assert (told.fleet, told.fleet_from) == ("self-hosted", "labels")
    assert (seen("s04_nolabels")[1].fleet, seen("s04_nolabels")[1].fleet_from) == (
        "unknown",
        "nothing",
    )


def test_a_ping_is_known_and_ignored() -> None:
    (delivery,) = deliveries(CASES / "t02_ping.json", NOW)
    said = facts(delivery)
    assert (list(said), said.ignored) == ([], "ping")
