"""Where a job belongs by configuration, and what is left without: counted, remembered, shown."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from pipeline import folds, metrics
from pipeline.agents.normalise import record_facts
from pipeline.agents.unrouted import MOST_SAMPLES, Unrouted
from pipeline.effects import Note
from pipeline.jobs import merge, view
from pipeline.routes import Routes
from pipeline.settings import load
from tests.test_sink_rows import FakeRecord
from topics.catalogue import WEBHOOKS
from topics.models import JobFact

T0: Final = 1_790_000_000_000
TOLD: Final[dict[str, Any]] = {
    "accounts": {"4711": "acme-inc", "Acme": "acme", "git.example.com/acme": "acme-git"},
    "fleets": [
        {"repo": "acme/*", "labels": ["GPU", "linux"], "fleet": "gpu"},
        {"repo": "Acme/sh?p", "fleet": "shops"},
        {"labels": ["windows"], "fleet": "windows"},
    ],
}
ROUTES: Final = Routes(TOLD)


@pytest.mark.parametrize(
    ("installation", "host", "repo", "account"),
    [
        # The installation first: an owner can be renamed.
        (4711, "github.com", "acme/shop", "acme-inc"),
        (4711, "github.com", "renamed/shop", "acme-inc"),
        (4712, "github.com", "acme/shop", "acme"),
        (0, "github.com", "ACME/shop", "acme"),
        (0, "git.example.com", "acme/shop", "acme-git"),
        (0, "github.com", "other/shop", None),
        (0, "github.com", "", None),
        # A number is not an owner's name, nor the other way.
        (0, "github.com", "4712/shop", None),
    ],
)
def test_an_account_is_the_installations_first_and_the_owners_second(
    installation: int, host: str, repo: str, account: str | None
) -> None:
    assert ROUTES.account(installation, host, repo) == account


@pytest.mark.parametrize(
    ("repo", "labels", "fleet"),
    [
        ("acme/shop", ("gpu", "linux"), "gpu"),
        ("acme/shop", ("big", "gpu", "linux"), "gpu"),
        ("acme/shop", ("gpu",), "shops"),
        ("ACME/SHOP", (), "shops"),
        ("acme/shopping", ("gpu",), None),
        ("other/x", ("windows", "x64"), "windows"),
        ("", ("windows",), "windows"),
        ("", (), None),
    ],
)
def test_a_fleet_is_that_of_the_first_rule_that_fits(
    repo: str, labels: tuple[str, ...], fleet: str | None
) -> None:
    for _ in range(2):
        assert ROUTES.fleet(repo, labels) == fleet


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"fleet": []}, "'fleet' is neither accounts nor fleets"),
        ({"accounts": []}, "accounts: expected an object"),
        ({"accounts": {"acme": 7}}, "accounts: expected an object"),
        ({"accounts": {"acme": ""}}, "accounts: expected an object"),
        ({"fleets": {"linux": "x"}}, "fleets: expected an array of rules"),
        ({"fleets": ["linux"]}, "fleets: expected a rule"),
        ({"fleets": [{"repo": "a/*"}]}, "a rule names its fleet"),
        ({"fleets": [{"fleet": " "}]}, "a rule names its fleet"),
        ({"fleets": [{"fleet": "x", "label": ["a"]}]}, "'label' is not one of"),
        ({"fleets": [{"fleet": "x", "labels": "a"}]}, "no array of labels"),
        ({"fleets": [{"fleet": "x", "labels": [""]}]}, "no array of labels"),
        ({"fleets": [{"fleet": "x", "repo": ""}]}, "no pattern"),
    ],
)
def test_what_cannot_be_a_route_is_refused_at_the_start(told: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Routes(told)
    with pytest.raises(ValueError, match="routes"):
        load(environment=False, routes=json.dumps(told))


def hook(labels: list[str], repo: str = "acme/shop", **more: Any) -> FakeRecord:
    body = {
        "action": "queued",
        "workflow_job": {"id": 7, "status": "queued", "labels": labels},
        "repository": {"full_name": repo},
        **more,
    }
    headers: list[tuple[str, bytes | None]] = [("X-GitHub-Event", b"workflow_job")]
    return FakeRecord(WEBHOOKS, json.dumps(body).encode(), headers=headers, timestamp=T0)


def fleet_of(record: FakeRecord, *more: JobFact, **settings: Any) -> tuple[str, str]:
    names = folds.fleet_names(load(environment=False, **settings))
    fact = next(iter(record_facts(record)[0]))
    assert isinstance(fact, JobFact)
    job = merge(None, fact)
    for each in more:
        job = merge(job, each)
    seen = view(job, names)
    return seen.fleet, seen.fleet_from


def test_jobs_are_in_the_fleets_that_routes_name() -> None:
    routes = json.dumps(TOLD)
    assert fleet_of(hook(["self-hosted", "linux", "gpu"]), routes=routes) == ("gpu", "labels")
    assert fleet_of(hook([]), routes=routes) == ("shops", "nothing")
    # Without a rule that fits it is as without routes.
    other = hook(["linux", "x64"], "other/app")
    aliases = '{"linux,x64": "small"}'
    assert fleet_of(other, routes=routes) == fleet_of(other) == ("linux,x64", "labels")
    assert fleet_of(other, routes=routes, fleets=aliases) == ("small", "labels")
    assert fleet_of(hook([], "other/app"), routes=routes) == ("unknown", "nothing")
    # The dispatcher's word wins.
    fact = next(iter(record_facts(hook(["gpu"]))[0]))
    assert isinstance(fact, JobFact)
    assert fact.job is not None
    pool = fact.model_copy(
        update={"id": "p", "job": fact.job.model_copy(update={"pool": "mine", "labels": ()})}
    )
    assert fleet_of(hook(["gpu"]), pool, routes=routes) == ("mine", "pool")


def look(unrouted: Unrouted, record: FakeRecord) -> list[str]:
    """The reasons that were counted."""
    notes = record_facts(record, look=unrouted.look)[1]
    return [note.labels[0] for note in notes if note.metric is metrics.UNROUTED]


def test_what_no_route_fits_is_counted_and_remembered() -> None:
    unrouted = Unrouted(ROUTES)
    assert look(unrouted, hook(["linux", "gpu"])) == []
    assert look(unrouted, hook(["linux"], "other/app")) == ["no_account", "no_fleet"]
    for _ in range(2):
        assert look(unrouted, hook(["linux"], "other/app", installation={"id": 4711})) == [
            "no_fleet"
        ]
    assert look(unrouted, hook(["windows"], "other/app", installation={"id": "4712"})) == [
        "no_account"
    ]
    # Of what names no repository nothing is known.
    assert look(unrouted, hook(["linux"], "")) == []
    found = unrouted.samples()
    assert [(one.about, one.deliveries) for one in found["no_account"]] == [
        ("github.com/other, installation 4712", 1), ("github.com/other", 1),
    ]  # fmt: skip
    assert [(one.about, one.deliveries) for one in found["no_fleet"]] == [
        ("other/app: linux (account acme-inc)", 2), ("other/app: linux", 1),
    ]  # fmt: skip
    last = found["no_fleet"][0]
    assert (last.first_at, last.last_at, last.job_key) == (T0, T0, "github:github.com:7")


def test_only_what_is_configured_can_be_missing() -> None:
    record = hook(["linux"], "other/app")
    assert look(Unrouted(Routes({})), record) == []
    assert look(Unrouted(Routes({"accounts": {"acme": "a"}})), record) == ["no_account"]
    assert look(Unrouted(Routes({"fleets": [{"repo": "acme/*", "fleet": "a"}]})), record) == [
        "no_fleet"
    ]
    assert Note(metrics.UNROUTED, ("no_fleet",)) not in record_facts(record)[1]


def test_samples_are_bounded_and_the_latest_stay() -> None:
    unrouted = Unrouted(Routes({"fleets": [{"repo": "acme/*", "fleet": "a"}]}))
    for number in range(MOST_SAMPLES + 7):
        look(unrouted, hook(["linux"], f"other/app{number}"))
    look(unrouted, hook(["x" * 256 + str(n) for n in range(100)], "other/" + "y" * 900))
    found = unrouted.samples()["no_fleet"]
    assert len(found) == MOST_SAMPLES
    assert all(len(one.about) <= 400 for one in found)
    assert found[1].about == f"other/app{MOST_SAMPLES + 6}: linux"
