"""Records to rows: pure, so exact. What the tables make of the rows is tested in the others."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from sinks import rows
from sinks.writer import BatchIdentity
from topics.dead_letters import SourceRecord
from topics.envelope import Record
from topics.models import (
    ClaimState,
    Clock,
    Conclusion,
    DeadLetter,
    Delivery,
    Family,
    JobAttributes,
    JobState,
    LifecycleEvent,
    Milestone,
    Reason,
    RunnerRef,
    Sample,
    Status,
    Step,
    Timing,
    Unreadable,
    Window,
    WindowFamily,
)
from topics.recovery import StallKind

T0 = 1_790_000_000_000


@dataclass(frozen=True)
class FakeRecord:
    topic: str
    value: bytes | None
    key: bytes | None = b"github:github.com:1"
    partition: int = 0
    offset: int = 0
    timestamp: int = T0
    headers: list[tuple[str, bytes | None]] = field(default_factory=list)


def on(topic: str, record: Record, **place: Any) -> FakeRecord:
    return FakeRecord(topic, record.model_dump_json().encode(), record.key.encode(), **place)


def job_state(number: int = 1, rev: int = 1, **changes: Any) -> JobState:
    known: dict[str, Any] = {
        "id": f"state:{number}:{rev}",
        "source": "runnerstream",
        "occurred_at": T0,
        "received_at": T0 + 40,
        "key": f"github:github.com:{number}",
        "rev": rev,
        "provider": "github",
        "host": "github.com",
        "job_id": str(number),
        "status": Status.QUEUED,
        "since": T0,
        "fleet": "linux-x64",
        "queued_at": T0,
    }
    return JobState(**(known | changes))


COMPLETED: dict[str, Any] = {
    "status": Status.COMPLETED,
    "since": T0 + 9_000,
    "conclusion": Conclusion.FAILURE,
    "job": JobAttributes(
        run_id=7, run_attempt=2, repo="acme/app", workflow="ci", name="build", branch="main",
        sha="abc", url="https://x", labels=("linux", "x64"), runner_group="asked", pool="p",
        actor="ada", trigger="pull_request", pull_request=12, head_repo="fork/app",
    ),
    "runner": RunnerRef(id=5, name="vm-5", group="big"),
    "claimed_at": T0 + 1_000,
    "minted_at": T0 + 1_500,
    "started_at": T0 + 2_000,
    "completed_at": T0 + 9_000,
    "timings": {
        Family.QUEUE: Timing(ms=2_000, start_clock=Clock.PROVIDER, end_clock=Clock.STEP),
        Family.RUN: Timing(missing="negative", clamped_ms=3),
    },
    "times": {Milestone.STARTED: {Clock.PROVIDER: T0 + 3_000, Clock.STEP: T0 + 2_000}},
    "claims": {
        "lease-1": ClaimState(claimed_at=T0 + 500, released_at=T0 + 900, reason="dispatch_failed"),
        "lease-2": ClaimState(claimed_at=T0 + 1_000, minted_at=T0 + 1_500, runner="vm-5"),
    },
    "steps": (
        Step(number=1, name="Set up job", conclusion=Conclusion.SUCCESS, started_at=T0 + 2_000,
             completed_at=T0 + 3_000),
        Step(number=3, name="test", conclusion=Conclusion.FAILURE, started_at=T0 + 3_000,
             completed_at=T0 + 3_000),
        Step(number=4, name="report", started_at=T0 + 4_000),
        Step(number=9, name="crossed", started_at=T0 + 4_000, completed_at=T0 + 3_000),
    ),
    "causes": ("workflow_job.completed",),
}  # fmt: skip


def built(*records: FakeRecord) -> dict[str, list[dict[str, Any]]]:
    tables, failed = rows.build([rows.decode(record) for record in records])
    assert failed == []
    return {
        each.table.name: [dict(zip(each.table.columns, row, strict=True)) for row in each.rows]
        for each in tables
    }


def test_a_delivery_keeps_its_body_byte_for_byte() -> None:
    body = '{"action":"queued",  "name":"ü\\n"}'
    delivery = Delivery(
        id="d-1", kind="github.workflow_job", source="github", occurred_at=T0, received_at=T0 + 5,
        key="github:github.com:1", headers={"x-github-event": "workflow_job"}, payload=body,
    )  # fmt: skip
    (row,) = built(on(rows.WEBHOOKS, delivery, partition=3, offset=17))["events_raw"]
    assert (row["payload"], row["partition"], row["offset"]) == (body, 3, 17)
    assert (row["kind"], row["host"], row["unreadable"]) == (
        "github.workflow_job",
        "github.com",
        "",
    )
    assert row["headers"] == {"x-github-event": "workflow_job"}


def test_a_lifecycle_event_is_kept_whole() -> None:
    event = LifecycleEvent(
        id="e-1", kind="job.queued", source="dispatcher", occurred_at=T0, received_at=T0,
        key="github:github.com:1", job_id="1",
    )  # fmt: skip
    record = on(rows.LIFECYCLE_EVENTS, event)
    (row,) = built(record)["events_raw"]
    assert (row["payload"], row["kind"]) == (record.value, "job.queued")


@pytest.mark.parametrize("value", [b"no json", b"\xff\xfe", b"{}", None])
def test_history_keeps_what_nobody_can_read(value: bytes | None) -> None:
    (row,) = built(FakeRecord(rows.WEBHOOKS, value, partition=2, offset=9))["events_raw"]
    assert row["payload"] == (value or b"")
    assert row["unreadable"] in {reason.value for reason in Reason}
    assert (row["received_at"], row["id"]) == (T0, "runners.webhooks:2:9")


@pytest.mark.parametrize(
    ("topic", "value", "reason"),
    [
        (rows.JOB_STATES, b"[1", Reason.NOT_JSON),
        (rows.JOB_STATES, b'{"kind":"job.state"}', None),
        (rows.WINDOWS, b"null", None),
        (rows.WINDOWS, None, Reason.NOT_JSON),
        (rows.SAMPLES, b'"text"', None),
        (rows.DEAD_LETTERS, b"{}", None),
    ],
)
def test_what_cannot_be_read_says_why(
    topic: str, value: bytes | None, reason: Reason | None
) -> None:
    with pytest.raises(Unreadable) as caught:
        rows.decode(FakeRecord(topic, value))
    assert reason is None or caught.value.reason is reason


def test_a_newer_version_is_refused() -> None:
    newer = job_state().model_dump_json().replace('"version":1', '"version":2')
    with pytest.raises(Unreadable) as caught:
        rows.decode(FakeRecord(rows.JOB_STATES, newer.encode()))
    assert caught.value.reason is Reason.NEWER_VERSION


def test_a_completed_job_in_all_its_tables() -> None:
    tables = built(on(rows.JOB_STATES, job_state(rev=6, **COMPLETED)))
    assert set(tables) == {"jobs", "job_timings", "job_transitions", "job_steps"}
    (job,) = tables["jobs"]
    assert (job["facts"], job["deleted"], job["status"]) == (6, 0, "completed")
    assert job["rev"] == rows.version(1, 0)
    assert (job["runner_name"], job["runner_group"], job["conclusion"]) == (
        "vm-5",
        "big",
        "failure",
    )
    assert (job["queue_ms"], job["run_ms"], job["total_ms"]) == (2_000, None, None)

    (timing,) = tables["job_timings"]
    assert (timing["queue_ms"], timing["queue_missing"]) == (2_000, "")
    assert (timing["queue_start_clock"], timing["queue_end_clock"]) == ("provider", "step")
    assert (timing["run_ms"], timing["run_missing"], timing["run_clamped_ms"]) == (
        None,
        "negative",
        3,
    )
    assert timing["total_missing"] == "not_reported"
    assert timing["claims"] == 2

    steps = {(row["status"], row["claim"]): row for row in tables["job_transitions"]}
    assert set(steps) == {
        ("queued", ""), ("claimed", "lease-1"), ("released", "lease-1"), ("claimed", "lease-2"),
        ("starting", "lease-2"), ("running", ""), ("completed", ""),
    }  # fmt: skip
    assert steps["running", ""]["clock"] == "step"
    assert steps["completed", ""]["clock"] == ""
    assert steps["completed", ""]["cause"] == "failure"
    assert steps["released", "lease-1"]["cause"] == "dispatch_failed"
    assert steps["starting", "lease-2"]["runner"] == "vm-5"
    assert {row["rev"] for row in steps.values()} == {6}


@pytest.mark.parametrize("name", list(JobAttributes.model_fields))
def test_every_attribute_of_a_job_is_a_column_of_jobs_and_job_timings(name: str) -> None:
    """One more field of the contract is one more column here."""
    told = getattr(COMPLETED["job"], name)
    assert told, f"COMPLETED should say something of {name}"
    tables = built(on(rows.JOB_STATES, job_state(**COMPLETED | {"runner": None})))
    for table in ("jobs", "job_timings"):
        assert tables[table][0][name] == told, table


def test_the_columns_of_both_tables_say_the_same_of_a_job() -> None:
    """The attributes come from one declaration; what differs is a revision or a count."""
    tables = built(on(rows.JOB_STATES, job_state(rev=6, **COMPLETED)))
    (job,), (timing,) = tables["jobs"], tables["job_timings"]
    assert {n for n in job.keys() & timing.keys() if job[n] != timing[n]} == {"rev", "claims"}
    assert (timing["rev"], job["claims"]) == (6, ("lease-1", "lease-2"))


def test_a_row_per_step_of_a_job() -> None:
    steps = built(on(rows.JOB_STATES, job_state(rev=6, **COMPLETED)))["job_steps"]
    assert [(row["number"], row["name"], row["conclusion"], row["run_ms"]) for row in steps] == [
        (1, "Set up job", "success", 1_000),
        (3, "test", "failure", 0),
        (4, "report", "", None),
        (9, "crossed", "", None),
    ]
    assert (steps[0]["started_at"], steps[0]["completed_at"]) == (T0 + 2_000, T0 + 3_000)
    assert (steps[2]["started_at"], steps[2]["completed_at"]) == (T0 + 4_000, None)
    of_job = {
        "key": "github:github.com:1", "rev": 6, "fleet": "linux-x64", "repo": "acme/app",
        "workflow": "ci", "job_name": "build", "received_at": T0 + 40,
    }  # fmt: skip
    assert all(of_job.items() <= row.items() for row in steps)


def test_steps_coalesce_with_the_states_that_tell_them() -> None:
    first = job_state(rev=1, steps=(Step(number=1, name="a", started_at=T0),))
    ended = first.steps[0].model_copy(update={"completed_at": T0 + 5})
    later = job_state(rev=2, steps=(ended, Step(number=2, name="b")))
    records = [on(rows.JOB_STATES, state, offset=state.rev) for state in (first, later)]
    for order in (records, records[::-1]):
        steps = built(*order)["job_steps"]
        assert [(row["number"], row["rev"], row["run_ms"]) for row in steps] == [
            (1, 2, 5), (2, 2, None),
        ]  # fmt: skip


def test_a_tombstone_says_nothing_but_that_the_job_is_gone() -> None:
    gone = FakeRecord(rows.JOB_STATES, None, b"github:github.com:1", offset=1)
    (job,) = built(gone)["jobs"]
    said = {name: value for name, value in job.items() if value not in ("", 0, None, ())}
    assert said == {
        "key": "github:github.com:1", "rev": rows.version(1, 1), "deleted": 1,
        "occurred_at": T0, "received_at": T0,
    }  # fmt: skip


def test_a_live_job_has_no_timings() -> None:
    assert set(built(on(rows.JOB_STATES, job_state()))) == {"jobs", "job_transitions"}


def test_a_copied_job_makes_no_transitions_and_no_steps() -> None:
    tables = built(on(rows.JOB_STATES, job_state(copied=True, **COMPLETED)))
    assert set(tables) == {"jobs", "job_timings"}
    assert tables["job_timings"][0]["copied"] is True


def test_the_last_state_of_a_job_wins_in_any_order() -> None:
    states = [on(rows.JOB_STATES, job_state(rev=rev), offset=rev) for rev in (1, 2, 3)]
    states.append(on(rows.JOB_STATES, job_state(number=2, rev=1), offset=4))
    for _ in range(10):
        random.shuffle(states)
        jobs = built(*states)["jobs"]
        assert sorted((job["key"], job["facts"]) for job in jobs) == [
            ("github:github.com:1", 3),
            ("github:github.com:2", 1),
        ]


def test_a_tombstone_beats_what_came_before_and_leaves_history() -> None:
    state = on(rows.JOB_STATES, job_state(rev=999, **COMPLETED))
    gone = FakeRecord(rows.JOB_STATES, None, b"github:github.com:1", offset=1)
    for records in ((state, gone), (gone, state), (state, gone, gone)):
        tables = built(*records)
        versions = sorted((job["rev"], job["deleted"]) for job in tables["jobs"])
        assert versions == [(rows.version(1, 0), 0), (rows.version(1, 1), 1)]
        assert len(tables["job_timings"]) == 1
    assert set(built(gone)) == {"jobs"}
    with pytest.raises(Unreadable):
        rows.decode(FakeRecord(rows.JOB_STATES, None, None))


def test_a_job_that_is_heard_of_again_after_its_tombstone_is_written_beside_it() -> None:
    """The second life begins with fewer facts, and what it says comes later all the same."""
    first = on(rows.JOB_STATES, job_state(rev=9), offset=10)
    gone = FakeRecord(rows.JOB_STATES, None, b"github:github.com:1", offset=11)
    again = on(rows.JOB_STATES, job_state(rev=1, **COMPLETED), offset=12)
    other = on(rows.JOB_STATES, job_state(number=2), offset=13)
    tables = built(first, gone, again, other)
    mine = [job for job in tables["jobs"] if job["key"] == "github:github.com:1"]
    latest = max(mine, key=lambda job: job["rev"])
    assert (latest["deleted"], latest["facts"], latest["status"]) == (0, 1, "completed")
    assert len(mine) == 3
    assert {row["rev"] for row in tables["job_transitions"]} == {9, 1}


def test_a_version_is_a_place_in_the_log() -> None:
    places = [(0, 0), (1, 0), (1, 1), (1, 2**40), (2, 0), (2, 7), (32_767, 2**48 - 1)]
    versions = [rows.version(*place) for place in places]
    assert versions == sorted(set(versions))
    # Beyond everything that the first release wrote: revs, and 2^63 for a tombstone.
    assert versions[0] >= 2**63
    assert versions[1] > 2**63
    assert versions[-1] < 2**64
    for epoch, offset in ((-1, 0), (32_768, 0), (1, 2**48), (1, -1)):
        with pytest.raises(ValueError, match="no version"):
            rows.version(epoch, offset)


def test_a_topic_that_was_made_anew_comes_later() -> None:
    item = rows.decode(on(rows.JOB_STATES, job_state(), offset=1_000))
    (before, *_), _ = rows.build([item], {rows.JOB_STATES: 1})
    fresh = rows.decode(on(rows.JOB_STATES, job_state(), offset=0))
    (after, *_), _ = rows.build([fresh], {rows.JOB_STATES: 2})
    place = rows.JOBS.columns.index("rev")
    assert after.rows[0][place] > before.rows[0][place]


def test_a_window_makes_a_row_per_family() -> None:
    bins = {-2: 1, 150: 1}
    window = Window(
        id="w", source="runnerstream", occurred_at=T0, received_at=T0, key="w", fleet="linux-x64",
        partition=3, size_s=60, start=T0, closed=True, rev=12,
        families={
            Family.QUEUE: WindowFamily(count=3, sum_ms=30, max_ms=20, zeros=1, bins=bins),
            Family.RUN: WindowFamily(count=0, sum_ms=0, max_ms=0),
        },
        conclusions={Conclusion.SUCCESS: 2},
        stranded={StallKind.ORPHAN: WindowFamily(count=1, sum_ms=60, max_ms=60, bins={200: 1})},
    )  # fmt: skip
    older = window.model_copy(update={"rev": 11, "closed": False})
    tables = built(on(rows.WINDOWS, window), on(rows.WINDOWS, older))
    assert [(row["family"], row["count"], row["rev"]) for row in tables["windows"]] == [
        ("queue", 3, 12), ("run", 0, 12), ("stranded.orphan", 1, 12),
    ]  # fmt: skip
    assert tables["windows"][0]["bins"] == bins
    assert tables["window_conclusions"][0]["conclusions"] == {"success": 2}


def test_a_sample_and_a_letter() -> None:
    sample = Sample(
        id="s", source="runnerstream", occurred_at=T0, received_at=T0, key="s", fleet="f",
        partition=1, status=Status.QUEUED, count=4, oldest_ms=9_000,
    )  # fmt: skip
    letter = DeadLetter.model_construct(
        id="t:1:2", kind="dead_letter", source="runnerstream", occurred_at=T0, received_at=T0,
        key="t:1:2", reason=Reason.NO_JOB, stage="fold", error="none", topic="t", partition=1,
        offset=2, record_key=b"k", record_value=b"\xff\x00", record_headers={"a": "b"},
    )  # fmt: skip
    tables = built(on(rows.SAMPLES, sample), on(rows.DEAD_LETTERS, letter))
    assert (tables["gauges"][0]["count"], tables["gauges"][0]["oldest_ms"]) == (4, 9_000)
    assert tables["dead_letters"][0]["record_value"] == b"\xff\x00"


def test_what_an_operator_waits_for_is_urgent() -> None:
    assert not rows.decode(on(rows.JOB_STATES, job_state())).urgent
    assert rows.decode(on(rows.JOB_STATES, job_state(**COMPLETED))).urgent


def test_a_fault_in_here_costs_one_record_and_not_the_batch() -> None:
    good = rows.decode(on(rows.JOB_STATES, job_state()))

    def broken(model: Any, record: SourceRecord, epoch: int) -> Any:
        raise ZeroDivisionError("oops")

    bad = rows.Item(FakeRecord(rows.SAMPLES, b"x"), broken, None)
    tables, failed = rows.build([bad, good])
    assert [each.table.name for each in tables] == ["jobs", "job_transitions"]
    assert [(record, why.reason) for record, why in failed] == [(bad.record, Reason.UNEXPECTED)]


def test_the_token_is_about_what_the_batch_is() -> None:
    def token(*parts: list[FakeRecord], salt: str = "") -> str:
        identity = BatchIdentity(salt)
        for part in parts:
            identity.add(part)
        return identity.token()

    a = [FakeRecord(rows.SAMPLES, b"%d" % n, offset=n) for n in range(4)]
    b = [FakeRecord(rows.SAMPLES, b"%d" % n, offset=n, partition=1) for n in range(4)]
    assert token(a, b) == token(b, a) == token(b, a[:2], a[2:]), "polls may come in any order"
    others = [token(a), token(b), token(a[:3]), token(a, b, salt="x")]
    # A topic that was created anew has the same offsets and other records.
    others.append(token([FakeRecord(rows.SAMPLES, b"new%d" % n, offset=n) for n in range(4)], b))
    assert len({token(a, b), *others}) == 6
