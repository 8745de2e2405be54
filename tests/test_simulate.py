"""The simulated fleet: same seed same bytes, a world that keeps its own rules, a true truth."""

from __future__ import annotations

import ast
import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import astuple

import pipeline.simulate
from pipeline.jobs import (
    FleetNames,
    Job,
    Run,
    encode_outcome,
    link_run,
    merge,
    merge_run,
    run_outcomes,
    view,
)
from pipeline.providers import facts, guid_time_ms, lifecycle_fact
from pipeline.simulate import (
    LIVE,
    NO_FAULTS,
    Faults,
    Fleet,
    JobTruth,
    Mix,
    Sending,
    Simulation,
    Tempo,
    default_fleets,
    malformed,
)
from pipeline.simulate.fleet import Event, World
from pipeline.simulate.origins import Origin
from pipeline.simulate.produce import Sent, live, send_all, send_live
from pipeline.simulate.truth import truth_of
from pipeline.simulate.wire import Said, guid_at
from pipeline.windows import contributions, start_of
from topics import bridge
from topics.catalogue import LIFECYCLE as LIFECYCLE_TOPIC
from topics.catalogue import WEBHOOKS
from topics.models import (
    DELIVERY,
    JOBS_RECORD,
    LIFECYCLE,
    Delivery,
    JobFact,
    Reason,
    RunFact,
    Unreadable,
)
from topics.reading import read

T0 = 1_790_000_000_000
#: Everything that is rare, often.
ROUGH = Mix(
    gated=0.2,
    released=0.2,
    shuffled=0.2,
    frozen=0.3,
    old_payloads=0.1,
    rerun=0.9,
    failed=0.2,
    ghost_runs=0.05,
    cancelled_before_start=0.1,
    stale_claims=0.02,
    orphaned=0.02,
)
STORM = Faults(
    duplicates=0.1,
    drops=0.05,
    reordered=0.2,
    redelivered=0.05,
    malformed=0.02,
    outages=((600, 300),),
)


def simulation(seed: int = 1, jobs: int = 300, **options: object) -> Simulation:
    return Simulation(seed, jobs, **{"start_ms": T0, "duration_s": 3600.0, **options})  # type: ignore[arg-type]


def world(mix: Mix | None = None, fleets: list[Fleet] | None = None, jobs: int = 400) -> World:
    return World(
        3,
        jobs,
        fleets or default_fleets(jobs, 3600, Tempo()),
        start_ms=T0,
        duration_s=3600,
        tempo=Tempo(),
        mix=mix or Mix(),
    )


def hook(record: Sending) -> Delivery:
    """A webhook as the pipeline reads it. The malformed ones may be envelopes."""
    raw = bridge.raw(record)
    return read(DELIVERY, record.value, Delivery.KINDS) if raw is None else bridge.delivery(raw)


# --- determinism ----------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not() -> None:
    one, again, other = simulation(7), simulation(7), simulation(8)
    first = list(one.records())
    assert first == list(again.records()) == list(one.records())
    assert one.truth() == again.truth()
    assert {r.key for r in first}.isdisjoint(r.key for r in other.records())


def test_faults_change_what_arrives_but_not_what_happened() -> None:
    def ids(faults: Faults) -> set[str]:
        return {hook(r).id for r in simulation(7, faults=faults).records() if r.topic == WEBHOOKS}

    assert ids(Faults(duplicates=1.0, reordered=1.0, drops=0, redelivered=0)) == ids(NO_FAULTS)
    assert ids(Faults(drops=0.2)) < ids(NO_FAULTS)


def test_records_come_in_sending_order_and_none_before_it_happened() -> None:
    before = 0
    for record in simulation(faults=STORM).records():
        assert record.send_at_ms >= before
        before = record.send_at_ms
        try:
            said = hook(record) if record.topic == WEBHOOKS else read(LIFECYCLE, record.value)
        except Unreadable:
            continue
        assert said.key.encode() == record.key
        if said.source != "dispatcher" or not said.id.startswith("bad-"):
            assert said.occurred_at <= said.received_at <= record.send_at_ms


# --- the world ------------------------------------------------------------------------------------


def test_no_fleet_runs_more_jobs_than_it_has_runners() -> None:
    fleets = [Fleet("small", ("small",), 3), Fleet("big", ("big",), 8, 2.0, dispatcher=False)]
    busy: Counter[str] = Counter()
    most: Counter[str] = Counter()
    there = world(ROUGH, fleets)
    for event in there.events():
        if event.job is None or event.job.copied:
            continue
        name = event.job.fleet.name
        if event.kind == "in_progress":
            busy[name] += 1
        elif event.kind == "completed" and event.job.started is not None:
            busy[name] -= 1
        most[name] = max(most[name], busy[name])
    assert most == {"small": 3, "big": 8}  # saturated, so that jobs had to wait
    assert busy == {"small": 0, "big": 0}
    assert min(there.deepest.values()) > 10


def test_the_oldest_waiting_job_is_claimed_first() -> None:
    calm = Mix(
        gated=0, released=0, shuffled=0, cancelled_before_start=0, ghost_runs=0, failed=0, skipped=0
    )
    waiting: dict[str, deque[int]] = defaultdict(deque)
    claims = 0
    for event in world(calm, [Fleet("f", ("f",), 2), Fleet("g", ("g",), 3)]).events():
        assert event.job is not None or event.kind.startswith("run.")
        if event.kind == "queued" and event.job:
            waiting[event.job.fleet.name].append(event.job.id)
        elif event.kind == "job.claimed" and event.job:
            assert waiting[event.job.fleet.name].popleft() == event.job.id
            claims += 1
    assert claims == 400


def test_every_job_ends_once_unless_its_run_is_a_ghost() -> None:
    queued: set[int] = set()
    ends: Counter[int] = Counter()
    claims: dict[str, list[str]] = defaultdict(list)
    last = 0
    for event in world(replace(ROUGH, bursts=0, stale_claims=0, orphaned=0)).events():
        assert event.at >= last
        last = event.at
        if event.job is None:
            continue
        if event.kind == "queued":
            queued.add(event.job.id)
        if event.kind == "completed":
            ends[event.job.id] += 1
        if event.claim:
            claims[event.claim].append(event.kind)
    assert set(ends.values()) == {1}
    ghosts = queued - set(ends)
    assert 0 < len(ghosts) < 0.2 * len(queued)
    # Every claim begins with being made, and ends released; a failed one was never minted.
    assert all(kinds[0] == "job.claimed" for kinds in claims.values())
    assert all(kinds[-1] == "claim.released" for kinds in claims.values())
    assert any(kinds == ["job.claimed", "claim.released"] for kinds in claims.values())


def test_stale_claims_and_orphans_stay_where_they_are_and_cost_no_runner() -> None:
    lost = Mix(stale_claims=0.1, orphaned=0.1, bursts=0)
    sim = simulation(5, 800, mix=lost, faults=NO_FAULTS)
    truth = sim.truth()
    left = Counter(job.status for job in truth.jobs.values() if job.status != "completed")
    assert left["claimed"] > 30
    assert left["starting"] > 30
    assert left["running"] == 0
    for job in truth.jobs.values():
        if job.status in ("claimed", "starting"):
            assert job.claimed_at is not None
            assert job.timings["queue"] == "pending"


def test_a_simulation_that_does_not_remember_sends_the_same() -> None:
    forgetful = simulation(7, remember=False)
    assert list(forgetful.records()) == list(simulation(7).records())
    with pytest.raises(RuntimeError, match="no truth"):
        forgetful.truth()


def test_shares_are_as_asked() -> None:
    truth = simulation(2, 6_000, faults=NO_FAULTS).truth()
    ends = Counter(job.conclusion for job in truth.jobs.values())
    assert 0.13 < ends["skipped"] / len(truth.jobs) < 0.17
    ran = [job for job in truth.jobs.values() if job.started_at is not None and not job.copied]
    failed = sum(job.conclusion == "failure" for job in ran)
    assert 0.08 < failed / len(ran) < 0.12
    cancelled = [j for j in truth.jobs.values() if j.conclusion == "cancelled"]
    assert any(job.started_at is None for job in cancelled)
    assert any(job.started_at is not None for job in cancelled)
    runs = sorted(ms for j in ran if isinstance(ms := j.timings["run"], int))
    assert 200_000 < runs[len(runs) // 2] < 280_000  # the median asked for is 240 s, and lognormal
    assert runs[-1] > 8 * runs[len(runs) // 2]


def test_bad_worlds_are_refused() -> None:
    twins = [Fleet("f", ("f",), 1), Fleet("f", ("g",), 1)]
    with pytest.raises(ValueError, match="unique"):
        list(simulation(fleets=twins).records())
    with pytest.raises(ValueError, match="at least one runner"):
        list(simulation(fleets=[Fleet("f", ("f",), 0)]).records())
    with pytest.raises(ValueError, match="at least one job"):
        simulation(jobs=0)
    with pytest.raises(ValueError, match="drops is a share"):
        Faults(drops=2)


# --- the wire -------------------------------------------------------------------------------------


@given(st.integers(T0 - 10**11, T0 + 10**11), st.integers(0, 9_999), st.integers(0, 2**48 - 1))
def test_a_delivery_id_carries_its_time(ms: int, ticks: int, node: int) -> None:
    assert guid_time_ms(guid_at(ms, ticks, node)) == ms


def test_bodies_look_like_githubs() -> None:
    kinds: Counter[str] = Counter()
    for record in simulation(3, 400, mix=ROUGH, faults=NO_FAULTS).records():
        if record.topic != WEBHOOKS:
            continue
        delivery = hook(record)
        kinds[delivery.kind] += 1
        assert 6_000 < len(delivery.payload) < 14_000
        assert guid_time_ms(delivery.id) == delivery.occurred_at
        for fact in facts(delivery):
            if isinstance(fact, JobFact):
                # GitHub's own clocks show whole seconds.
                told = [
                    at
                    for clocks in fact.times.values()
                    for clock, at in clocks.items()
                    if clock in ("provider", "step")
                ]
                assert all(at % 1000 == 0 for at in told)
    assert kinds["github.workflow_job"] > 2 * kinds["github.workflow_run"] > 100


# --- faults ---------------------------------------------------------------------------------------


def test_fault_rates_are_as_asked() -> None:
    calm = simulation(4, 3_000, faults=NO_FAULTS)
    happened = sum(1 for _ in calm.records())
    sim = simulation(
        4, 3_000, faults=Faults(duplicates=0.02, drops=0.01, reordered=0.05, redelivered=0.01)
    )
    sent = sum(1 for _ in sim.records())
    counts = sim.counts
    assert sent == happened - counts["dropped"] + counts["duplicated"] + counts["redelivered"]
    for name, share in (
        ("duplicated", 0.02),
        ("dropped", 0.01),
        ("reordered", 0.05),
        ("redelivered", 0.01),
    ):
        spread = 5 * math.sqrt(happened * share)
        assert abs(counts[name] - happened * share) < spread, name
    assert sum(calm.counts.values()) == 0


def test_an_outage_holds_everything_back_and_ends_in_a_burst() -> None:
    sim = simulation(5, faults=Faults(outages=((600, 300),), redelivered=0, duplicates=0))
    times = [(r.send_at_ms - T0) / 1000 for r in sim.records()]
    assert not [t for t in times if 600 <= t < 900]
    before = sum(500 <= t < 600 for t in times)
    assert sum(900 <= t < 903 for t in times) > before / 2


def test_malformed_records_are_refused_for_the_reason_given() -> None:
    bad = list(malformed(1, 48))
    assert bad == list(malformed(1, 48))
    assert len({m.name for m in bad}) >= 10
    assert len({m.reason for m in bad}) >= 7
    assert len({m.key for m in bad}) == len(bad)
    for wrong in bad:
        with pytest.raises(Unreadable) as caught:
            parse(Sending(T0, wrong.topic, wrong.key, wrong.value, wrong.headers))
        assert caught.value.reason is wrong.reason, wrong.name


# --- the truth ------------------------------------------------------------------------------------


def parse(record: Sending) -> list[object]:
    if record.topic == LIFECYCLE_TOPIC:
        return [lifecycle_fact(read(LIFECYCLE, record.value))]
    return list(facts(hook(record)))


def folded(records: Iterable[Sending]) -> tuple[dict[str, Job], Counter[str]]:
    """What the pipeline's own rules make of the records, in memory."""
    jobs: dict[str, Job] = {}
    runs: dict[str, Run] = {}
    dead: Counter[str] = Counter()
    for record in records:
        try:
            said = parse(record)
        except Unreadable as why:
            dead[why.reason.value] += 1
            continue
        for fact in said:
            if isinstance(fact, JobFact):
                jobs[fact.key] = merge(jobs.get(fact.key), fact)
                continue
            before = runs.get(fact.key)  # type: ignore[attr-defined]
            after = (
                merge_run(before, fact) if isinstance(fact, RunFact) else link_run(before, fact)  # type: ignore[arg-type]
            )
            runs[after.key] = after
            for outcome in run_outcomes(before, after):
                told = read(JOBS_RECORD, encode_outcome(outcome))
                jobs[told.key] = merge(jobs.get(told.key), told)
    return jobs, dead


@pytest.mark.parametrize(
    ("seed", "options", "take"),
    [
        (1, {}, None),
        (2, {"mix": ROUGH, "faults": STORM}, None),
        (3, {"mix": ROUGH, "faults": STORM}, 1_500),
        (4, {"mix": ROUGH, "faults": NO_FAULTS}, None),
        (5, {"mix": ROUGH, "faults": Faults(drops=0.5)}, None),
        (6, {"mix": ROUGH, "tempo": LIVE, "duration_s": 120.0}, None),
    ],
)
def test_truth_and_pipeline_agree_on_every_job_and_every_window(
    seed: int, options: dict[str, object], take: int | None
) -> None:
    sim = simulation(seed, 600, **options)
    records = []
    for record in sim.records():
        records.append(record)
        if take is not None and len(records) == take:
            break
    truth = sim.truth()
    jobs, dead = folded(records)

    assert dead == truth.dead_letters
    assert Counter(r.topic for r in records) == truth.sent
    windows: dict[tuple[str, str, int, int], tuple[int, int]] = {}
    conclusions: Counter[tuple[str, str, int, int]] = Counter()
    assert jobs.keys() == truth.jobs.keys()
    for key, job in jobs.items():
        v = view(job, FleetNames())
        assert truth.jobs[key] == JobTruth(
            key=key,
            status=v.status,
            fleet=v.fleet,
            conclusion=v.conclusion,
            queued_at=v.at.queued and v.at.queued.ms,
            started_at=v.at.started and v.at.started.ms,
            completed_at=v.at.completed and v.at.completed.ms,
            claimed_at=v.at.claimed,
            gated_ms=v.at.gated_ms,
            abandoned_ms=v.abandoned_ms,
            copied=v.at.copied,
            runner=job.runner.name if job.runner else "",
            timings={
                family: t.missing or "" if t.ms is None else t.ms for family, t in v.timings.items()
            },
            origin=Origin(*(getattr(job.attributes, name) for name in Origin._fields)),
            steps=tuple(astuple(step) for step in job.steps),
        )
        for c in contributions(v):
            for size_s in (60, 300, 3600):
                cell = (c.fleet, c.name, size_s, start_of(c.at, size_s))
                if c.ms is None:
                    conclusions[cell] += 1
                else:
                    number, total = windows.get(cell, (0, 0))
                    windows[cell] = (number + 1, total + c.ms)
    assert windows == truth.windows
    assert conclusions == truth.conclusions


def test_without_faults_the_truth_is_what_happened_in_the_world() -> None:
    real: dict[str, Event] = {}
    calm = Mix(frozen=0, old_payloads=0, ghost_runs=0, gated=0)
    sim = simulation(3, 400, mix=calm, faults=NO_FAULTS)
    for event in world(calm, sim.fleets).events():
        if event.kind == "completed" and event.job is not None:
            real[f"github:github.com:{event.job.id}"] = event
    truth = sim.truth()
    assert truth.jobs.keys() == real.keys()
    for key, told in truth.jobs.items():
        job = real[key].job
        assert job is not None
        assert job.completed is not None
        assert (told.status, told.conclusion) == ("completed", job.conclusion)
        assert told.copied == job.copied
        if job.copied:
            continue
        assert told.fleet in (job.fleet.name, "ubuntu-latest", "unknown") or job.started is None
        if job.started is None:
            assert told.started_at is None
            assert told.abandoned_ms is not None
            assert abs(told.abandoned_ms - (job.completed - job.created)) <= 2_000
        else:
            # GitHub's clocks show whole seconds, so each difference is off by less than one.
            assert abs(number(told.timings["queue"]) - (job.started - job.created)) < 1_000
            assert abs(number(told.timings["run"]) - (job.completed - job.started)) < 1_000
            assert abs(number(told.timings["total"]) - (job.completed - job.created)) < 1_000


def number(value: int | str) -> int:
    assert isinstance(value, int), value
    return value


def test_windows_add_up() -> None:
    truth = simulation(2, 500, mix=ROUGH, faults=STORM).truth()
    for family in ("queue", "claim_to_start", "run", "total"):
        samples = [
            ms
            for job in truth.jobs.values()
            if isinstance(ms := job.timings[family], int) and not job.copied
        ]
        for size_s in (60, 300, 3600):
            cells = [v for (_, f, s, _), v in truth.windows.items() if (f, s) == (family, size_s)]
            assert sum(count for count, _ in cells) == len(samples)
            assert sum(total for _, total in cells) == sum(samples)
    ended = sum(job.completed_at is not None and not job.copied for job in truth.jobs.values())
    assert sum(n for (_, _, s, _), n in truth.conclusions.items() if s == 60) == ended


SAID = Said(id="g", kind="queued", key="k", event_at=T0, received_at=T0 + 5)


def test_truth_by_hand() -> None:
    """A gated job, claimed twice, worked out on paper."""

    def claim(kind: str, at_s: int, handle: str, runner: str) -> Said:
        return Said(
            id="l",
            kind=kind,
            key="k",
            event_at=T0 + at_s * 1000,
            received_at=T0,
            claim=handle,
            runner=runner,
            pool="p",
        )

    hooks = [
        SAID._replace(created=T0, mark="queued", labels="linux"),
        SAID._replace(kind="waiting", event_at=T0 + 1_500, created=T0, mark="waiting"),
        SAID._replace(event_at=T0 + 61_500, created=T0, mark="queued"),
        SAID._replace(
            kind="in_progress",
            event_at=T0 + 80_400,
            created=T0,
            started=T0 + 80_000,
            step=T0 + 80_000,
            runner="r2",
        ),
        SAID._replace(
            kind="completed",
            event_at=T0 + 100_700,
            created=T0,
            started=T0 + 80_000,
            completed=T0 + 100_000,
            conclusion="failure",
            runner="r2",
        ),
    ]
    lifecycle = [
        claim("job.claimed", 62, "k-1", "r1"),
        claim("claim.released", 70, "k-1", "r1"),
        claim("job.claimed", 71, "k-2", "r2"),
        claim("job.minted", 72, "k-2", "r2"),
    ]
    truth = truth_of([*hooks, *lifecycle])
    job = truth.jobs["k"]
    assert job.timings == {
        "queue": 20_000,
        "claim_to_start": 9_000,
        "run": 20_000,
        "total": 100_000,
    }
    assert (job.status, job.conclusion, job.fleet) == ("completed", "failure", "p")
    assert truth.windows["p", "queue", 60, (T0 + 80_000) // 60_000 * 60_000] == (1, 20_000)
    assert truth_of([*lifecycle, *hooks[::-1]]) == truth
    # Taking knowledge away, step by step.
    assert truth_of([*hooks[:4], *lifecycle]).jobs["k"].status == "running"
    assert truth_of([*hooks[:3], *lifecycle]).jobs["k"].status == "starting"
    assert truth_of([*hooks[:3], *lifecycle[:3]]).jobs["k"].status == "claimed"
    assert truth_of([*hooks[:3], *lifecycle[:2]]).jobs["k"].status == "queued"
    assert truth_of(hooks[:2]).jobs["k"].status == "waiting"
    no_end = truth_of([hooks[0], hooks[1], hooks[3]]).jobs["k"]
    assert no_end.timings["queue"] == "gate_unknown"
    assert no_end.timings["run"] == "pending"


def test_the_truth_knows_nothing_of_what_it_judges() -> None:
    assert pipeline.simulate.__file__ is not None
    for path in Path(pipeline.simulate.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for name in names:
                assert not name.startswith(("pipeline.jobs", "pipeline.windows", "pipeline.prov"))


# --- sending --------------------------------------------------------------------------------------


class Collected(list[tuple[str, bytes | None, bytes | None]]):
    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        assert (topic == WEBHOOKS) == ("x-github-event" in dict(headers))
        self.append((topic, key, value))


def test_sending_as_fast_as_possible_sends_everything() -> None:
    sim, sink = simulation(), Collected()
    sent = send_all(sim.records(), sink)
    assert sent.records == len(sink) == sum(sim.truth().sent.values())
    assert sent.bytes == sum(len(value or b"") for _, _, value in sink)
    assert Sent(10, 0, 0.0).per_second == 0.0


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 10_000), st.floats(20, 600))
def test_live_sending_keeps_to_the_clock(seed: int, per_minute: float) -> None:
    sim = live(seed, per_minute, 1.0, start_ms=T0)
    clock = [T0 / 1000 - 2]
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        clock[0] += seconds + 1e-6

    late: list[float] = []

    class Watch(Collected):
        def send(self, *record: Any, **more: Any) -> None:
            super().send(*record, **more)
            late.append(clock[0])

    sink = Watch()
    sent = send_live(sim.records(), sink, now_s=lambda: clock[0], sleep=sleep)
    due = [r.send_at_ms / 1000 for r in sim.records()]
    assert sent.records == len(due) == len(sink)
    assert all(0 <= at - when < 0.6 for at, when in zip(late, due, strict=True))
    assert max(naps) <= 0.5


def test_live_sending_can_be_stopped_and_events_stay_near_now() -> None:
    sim = live(1, 300, 2.0, start_ms=T0)
    calls = iter(range(10_000))
    sink = Collected()
    sent = send_live(
        sim.records(),
        sink,
        stop=lambda: next(calls) > 100,
        now_s=lambda: 1e12,
        sleep=lambda _: None,
    )
    assert 20 < sent.records < 100
    for record in sim.records():
        if record.topic == WEBHOOKS:
            delivery = hook(record)
            # The slowest is a redelivery after two minutes.
            assert record.send_at_ms - delivery.occurred_at < 180_000


def test_reasons_of_malformed_records_are_reasons() -> None:
    sim = simulation(6, faults=Faults(malformed=0.05))
    truth = sim.truth()
    assert sum(truth.dead_letters.values()) > 50
    assert {Reason(reason) for reason in truth.dead_letters}
