"""The names of other systems: declared rightly, following what they follow from, and all told."""

from __future__ import annotations

import asyncio
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from pipeline import metrics
from pipeline.cli import main
from pipeline.compat import parity
from pipeline.compat.model import Always, From, Pair, System, Take, Theirs, Turn, values_of
from pipeline.compat.names import NAMES, names_of
from pipeline.compat.page import Page
from pipeline.compat.systems import SYSTEMS, systems
from pipeline.exporter import EVERYTHING, Exporter
from tests.support.compat_world import RECOVERED, World, recover

ROOT = Path(__file__).resolve().parents[1]

SERVED = [
    (system, theirs) for system in SYSTEMS.values() for theirs in system.metrics if theirs.follows
]
FOLLOWED = [(theirs, source) for _, theirs in SERVED for source in theirs.follows]


async def no_pause() -> None:
    pass


def text_of(page: Page, exporter: Exporter) -> str:
    async def text() -> bytes:
        return await page.exposition(await exporter.levels(no_pause), no_pause)

    return asyncio.run(text()).decode()


def both(*names: str, **options: Any) -> tuple[Page, Exporter]:
    page = Page(systems(names or NAMES))
    return page, Exporter(beside=page, **options)


def series(text: str) -> dict[str, float]:
    """By name and labels, as they stand there."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def total(text: str, name: str, **labels: str) -> float:
    """The sum of the series of this name with these labels."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(
        value
        for where, value in series(text).items()
        if where.partition("{")[0] == name and all(each in where for each in wanted)
    )


# --- declarations -----------------------------------------------------------------------------


def test_each_system_is_declared_under_its_name() -> None:
    assert {name: system.name for name, system in SYSTEMS.items()} == {n: n for n in SYSTEMS}
    assert tuple(SYSTEMS) == NAMES, "a name that serves nothing would be one too many"
    names = [theirs.name for system in SYSTEMS.values() for theirs in system.metrics]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "theirs", [theirs for system in SYSTEMS.values() for theirs in system.metrics],
    ids=lambda theirs: theirs.name,
)  # fmt: skip
def test_a_declaration_is_whole(theirs: Theirs) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", theirs.name)
    assert theirs.help.endswith(".")
    assert theirs.follows or theirs.said, "who asks for it must be told where the answer is"
    assert bool(theirs.buckets) == (theirs.kind == "histogram")
    assert list(theirs.buckets) == sorted(set(theirs.buckets))
    for source in theirs.follows:
        assert len(source.labels) == len(theirs.labels)
        assert source.metric in EVERYTHING
        if theirs.kind == "histogram":
            assert source.metric.kind == "histogram"
        assert (theirs.kind == "gauge") == (source.metric.kind == "gauge")
        for name, listed in told_values(source):
            known = values_of(source.metric, name)
            assert known is None or set(listed) <= set(known), (name, listed)


def told_values(source: From) -> list[tuple[str, tuple[str, ...]]]:
    """Labels of ours that a source names, with their values that it lists."""
    found = [(name, tuple(values)) for name, values in (source.only or {}).items()]
    for rule in source.labels:
        if isinstance(rule, Take):
            found.append((rule.ours, ()))
        elif isinstance(rule, Turn):
            found.append((rule.ours, tuple(rule.values)))
        elif isinstance(rule, Pair):
            found += [
                (name, tuple(dict.fromkeys(pair[place] for pair in rule.values)))
                for place, name in enumerate(rule.ours)
            ]
    return found


#: Values of ours that a rule leaves out, by the metric of theirs, and why that is right. A new
#: value of ours is left out as well, and seen here.
LEFT_OUT = {
    ("tuist_runners_claims_count", "status"): {"waiting", "queued"},  # nobody holds them
    ("tuist_runners_webhook_count", "action, outcome"): {
        "in_progress accepted", "other accepted",
        # They are counted as other.
        *(f"{action} malformed" for action in ("queued", "waiting", "in_progress", "completed")),
    },
    ("tuist_runners_recovery_count", "stall, command"): {
        "orphan release_claim",  # the job is over: that was the recovery
        # No rule proposes the others.
        "stale_claim requeue", "stale_claim close", "orphan close",
        "displaced release_claim", "displaced close", "runner_lost close",
        "stale_queue release_claim", "stale_queue requeue",
        *(f"missed_completion {command}" for command in ("release_claim", "requeue", "close")),
    },
    # Tuist does not look for these.
    ("tuist_runners_recovery_count", "stall"): {"displaced", "runner_lost", "missed_completion"},
    **{
        (f"{namespace}_{name}", label): left
        for namespace in ("act_runner", "gitea_runner")
        for name, label, left in (
            ("poll_fetch_total", "result", {"unauthenticated"}),
            ("client_errors_total", "method", {"other"}),
        )
    },
    **{
        (f"scheduler_{name}", "status"): {"unknown"}  # no value of theirs
        for name in (
            "planner_runs_total", "planner_latency_seconds", "runner_segments_total"
        )
    },
    ("gastown_reconciler_side_effects_total", "outcome"): {"unknown"},  # it began, no more
}  # fmt: skip


def test_what_is_left_out_is_left_out_on_purpose() -> None:
    found: dict[tuple[str, str], set[str]] = {}
    for theirs, source in FOLLOWED:
        for rule in source.labels:
            if isinstance(rule, Turn):
                known = values_of(source.metric, rule.ours) or tuple(rule.values)
                found[theirs.name, rule.ours] = set(known) - set(rule.values)
            elif isinstance(rule, Pair):
                a, b = (values_of(source.metric, each) or () for each in rule.ours)
                left = set(product(a, b)) - set(rule.values)
                found[theirs.name, ", ".join(rule.ours)] = {" ".join(each) for each in left}
    assert {place: left for place, left in found.items() if left} == LEFT_OUT


# --- from event to value ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "source"), [pair for pair in FOLLOWED if pair[0].kind != "gauge"],
    ids=lambda each: getattr(each, "name", ""),
)  # fmt: skip
def test_each_series_follows_each_of_ours(theirs: Theirs, source: From) -> None:
    """Whatever value one of ours is changed by, theirs is changed by, scaled; and by no other."""
    page, exporter = both()
    values = [
        each.values if isinstance(each.values, tuple) else ("a",) for each in source.metric.labels
    ]
    followed = 0
    for labels in product(*values):
        exporter.fleet("a", source.metric.group)
        before = series(text_of(page, exporter))
        exporter.count(source.metric, labels, 2.5)
        after = series(text_of(page, exporter))
        risen = {
            where: after[where] - before.get(where, 0.0)
            for where in after
            if where.startswith(theirs.name) and after[where] != before.get(where, 0.0)
        }
        place = source.place(labels)
        if place is None:
            assert not risen
            continue
        followed += 1
        told = [f'{name}="{value}"' for name, value in zip(theirs.labels, place, strict=True)]
        suffix = "_sum" if theirs.kind == "histogram" else ""
        where = f"{theirs.name}{suffix}{{{','.join(told)}}}" if told else theirs.name + suffix
        counts = theirs.kind == "counter" and source.metric.kind == "histogram"
        assert risen.pop(where) == (1 if counts else 2.5 * source.scale)
        buckets = {name for name in risen if "_bucket{" in name}
        if theirs.kind == "histogram":
            above = sum(bound >= 2.5 * source.scale for bound in theirs.buckets)
            assert len(buckets) == above + 1
            assert {risen[name] for name in buckets} == {1}
            assert len(risen) == above + 2
        else:
            assert not risen
    assert followed


def test_gauges_are_folded_as_they_are_looked_up() -> None:
    page, exporter = both("tuist")
    assert "tuist_runners_queue_length{" not in text_of(page, exporter), "blind is not zero"
    exporter.watch_levels(
        lambda: iter(
            [
                (metrics.JOBS, ("a", "queued"), 2), (metrics.JOBS, ("a", "queued"), 3),
                (metrics.JOBS, ("a", "claimed"), 4), (metrics.JOBS, ("a", "starting"), 5),
                (metrics.JOBS, ("a", "running"), 6), (metrics.JOBS, ("b", "waiting"), 7),
                (metrics.OLDEST, ("a", "queued"), 1.5), (metrics.OLDEST, ("a", "queued"), 0.5),
                (metrics.OLDEST, ("b", "waiting"), 70),
            ]
        )
    )  # fmt: skip
    text = text_of(page, exporter)
    assert (
        series(text).items()
        >= {
            'tuist_runners_queue_length{fleet="a"}': 5.0,
            'tuist_runners_queue_length{fleet="b"}': 0.0,
            'tuist_runners_queue_oldest_age_seconds{fleet="a"}': 1.5,
            'tuist_runners_queue_oldest_age_seconds{fleet="b"}': 0.0,
            'tuist_runners_claims_count{fleet="a",lifecycle_state="claimed"}': 4.0,
            'tuist_runners_claims_count{fleet="a",lifecycle_state="running"}': 11.0,
            'tuist_runners_claims_count{fleet="b",lifecycle_state="claimed"}': 0.0,
            'tuist_runners_claims_count{fleet="b",lifecycle_state="running"}': 0.0,
        }.items()
    )


def test_series_are_there_before_anything_happens() -> None:
    page, exporter = both("tuist")
    text = text_of(page, exporter)
    assert total(text, "tuist_runners_recovery_count", kind="stale_claim") == 0
    assert 'tuist_runners_recovery_count{kind="stale_claim"} 0' in text
    assert 'tuist_runners_webhook_count{action="queued",outcome="no_account"} 0' in text
    assert 'fleet="' not in text
    exporter.fleet("a")
    text = text_of(page, exporter)
    assert 'tuist_runners_job_requeued_count{fleet="a"} 0' not in text, "it knows no claims"
    assert 'tuist_runners_job_completed_count{fleet="a",conclusion="stale"} 0' in text
    assert 'tuist_runners_job_run_time_milliseconds_bucket{fleet="a",le="21600000"} 0' in text
    # As with us: no claim starts at once in a fleet that knows no claims.
    assert "tuist_runners_job_claim_to_running_time_milliseconds_count" not in text
    exporter.fleet("a", metrics.CLAIMS)
    text = text_of(page, exporter)
    assert 'tuist_runners_job_requeued_count{fleet="a"} 0' in text
    assert 'tuist_runners_job_queue_time_milliseconds_count{fleet="a"} 0' in text
    assert 'tuist_runners_recovery_stranded_time_milliseconds_count{fleet="a"} 0' in text


def test_fleets_beyond_the_limit_share_a_label() -> None:
    page, exporter = both("tuist", max_fleets=1)
    for fleet in ("a", "b", "c"):
        exporter.count(metrics.TRANSITIONS, (fleet, "queued"))
    found = series(text_of(page, exporter))
    assert found['tuist_runners_job_enqueued_count{fleet="a"}'] == 1
    assert found['tuist_runners_job_enqueued_count{fleet="other"}'] == 2
    assert not any('fleet="b"' in where for where in found)


def test_a_fleet_can_be_called_anything() -> None:
    page, exporter = both("tuist")
    odd = 'a"\\b\n'
    exporter.count(metrics.TRANSITIONS, (odd, "queued"))
    families = list(text_string_to_metric_families(text_of(page, exporter)))
    fleets = {s.labels["fleet"] for f in families for s in f.samples if "fleet" in s.labels}
    assert fleets == {odd}


def test_what_somebody_else_observed_follows_as_well() -> None:
    page, exporter = both("tuist")
    exporter.observe_many(metrics.RUN_SECONDS, ("a",), {10: 2, 600: 1}, 340.5)
    text = text_of(page, exporter)
    name = "tuist_runners_job_run_time_milliseconds"
    assert total(text, f"{name}_sum", fleet="a") == 340_500
    assert total(text, f"{name}_count", fleet="a") == 3
    for le, number in (("5000", 0), ("30000", 2), ("300000", 2), ("900000", 3)):
        assert total(text, f"{name}_bucket", le=le) == number


def test_without_a_page_nothing_follows() -> None:
    exporter = Exporter()
    exporter.count(metrics.TRANSITIONS, ("a", "queued"))
    assert asyncio.run(exporter.levels(no_pause))


def test_every_gauge_can_be_looked_up() -> None:
    exporter = Exporter()
    found = asyncio.run(exporter.levels(no_pause))
    assert set(found) == {each for each in EVERYTHING if each.kind == "gauge"}


# --- the truth --------------------------------------------------------------------------------


def test_a_simulated_fleet_is_counted_as_it_was() -> None:
    page, exporter = both("tuist")
    world = World(exporter, seed=21, jobs=250, minutes=40)
    exporter.watch_levels(world.live_jobs)
    world.run()
    text = text_of(page, exporter)
    fleets = {job.fleet for job in world.jobs}
    assert len(fleets) > 3
    enqueued = world.by_fleet(lambda job: job.queued_at is not None)
    claimed = world.by_fleet(lambda job: job.claimed_at is not None)
    running = world.by_fleet(lambda job: job.started_at is not None or job.runner)
    completed = world.by_fleet(lambda job: job.completed_at is not None)
    queued = world.by_fleet(lambda job: job.status == "queued")
    held = world.by_fleet(lambda job: job.status in ("starting", "running"))
    before_mint = world.by_fleet(lambda job: job.status == "claimed")
    requeues, waits = world.requeues(), world.waits()
    for each in (enqueued, claimed, running, completed, queued, held, before_mint, requeues):
        assert sum(each.values()), "the world must have some of each"
    for fleet in fleets:
        told = {
            "enqueued": total(text, "tuist_runners_job_enqueued_count", fleet=fleet),
            "claimed": total(text, "tuist_runners_job_claim_count", fleet=fleet, outcome="ok"),
            "running": total(text, "tuist_runners_job_running_count", fleet=fleet),
            "completed": total(text, "tuist_runners_job_completed_count", fleet=fleet),
            "requeued": total(text, "tuist_runners_job_requeued_count", fleet=fleet),
            "queue": total(text, "tuist_runners_queue_length", fleet=fleet),
            "oldest": total(text, "tuist_runners_queue_oldest_age_seconds", fleet=fleet),
            "before_mint": total(
                text, "tuist_runners_claims_count", fleet=fleet, lifecycle_state="claimed"
            ),
            "held": total(
                text, "tuist_runners_claims_count", fleet=fleet, lifecycle_state="running"
            ),
        }
        since = [job.queued_at for job in world.jobs if job.fleet == fleet
                 and job.status == "queued" and job.queued_at is not None]  # fmt: skip
        assert told == {
            "enqueued": enqueued[fleet], "claimed": claimed[fleet], "running": running[fleet],
            "completed": completed[fleet], "requeued": requeues[fleet], "queue": queued[fleet],
            "held": held[fleet], "before_mint": before_mint[fleet],
            "oldest": (world.until - min(since, default=world.until)) / 1000,
        }, fleet  # fmt: skip
        timed = {
            "queue_time": waits.get(fleet, []),
            "queue_to_running_time": world.timings("queue").get(fleet, []),
            "claim_to_running_time": world.timings("claim_to_start").get(fleet, []),
            "run_time": world.timings("run").get(fleet, []),
            "total_time": world.timings("total").get(fleet, []),
        }
        for name, ms in timed.items():
            metric = f"tuist_runners_job_{name}_milliseconds"
            assert total(text, f"{metric}_count", fleet=fleet) == len(ms), name
            assert total(text, f"{metric}_sum", fleet=fleet) == pytest.approx(sum(ms)), name


def test_deliveries_are_counted_by_what_they_tell() -> None:
    page, exporter = both("tuist")
    world = World(exporter, seed=12, jobs=60, minutes=60)
    world.run()
    text = text_of(page, exporter)
    sent = world.deliveries()
    assert {("queued", "accepted"), ("other", "malformed")} <= set(sent)
    ours = metrics.WEBHOOK_JOBS.shown
    own = asyncio.run(exporter.exposition(no_pause)).decode()
    for (action, outcome), times in sent.items():
        assert total(own, ours, action=action, outcome=outcome) == times, (action, outcome)
    assert total(own, ours) == sent.total()
    name = "tuist_runners_webhook_count"
    for action, there in (("queued", "queued"), ("completed", "completed")):
        told = total(text, name, action=action, outcome=there)
        assert told == sent[action, "accepted"]
    assert total(text, name, outcome="unknown") == sent["other", "malformed"]


def test_recovery_is_counted_once_by_kind() -> None:
    page, exporter = both("tuist")
    recover(exporter)
    text = text_of(page, exporter)
    name = "tuist_runners_recovery_count"
    assert {kind: total(text, name, kind=kind) for kind in RECOVERED} == RECOVERED
    assert total(text, name) == sum(RECOVERED.values())
    stranded = "tuist_runners_recovery_stranded_time_milliseconds"
    assert total(text, f"{stranded}_count", fleet="linux") == sum(RECOVERED.values())
    # None of them began before its claim was released; the one that was over is none.
    assert total(text, "tuist_runners_job_requeued_count") == 5


# --- what is told -----------------------------------------------------------------------------


def known_names() -> set[str]:
    """Every metric that any of our processes exports."""
    from docs import generate

    found = {each.shown for each in EVERYTHING}
    for role in generate.ROLE_METRICS:
        found |= set(re.findall(r"`(runnerstream_\w+)`", generate.role_metrics(role)))
    return found


def here_of(system: System) -> list[str]:
    """All that is said of what is here."""
    return [cell for table in parity.tables(system) for row in table.rows for cell in row]


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=lambda system: system.name)
def test_no_cell_is_empty(system: System) -> None:
    tables = list(parity.tables(system))
    assert tables
    for table in tables:
        assert table.rows, table.title
        for row in table.rows:
            assert len(row) == len(table.columns)
            assert all(cell.strip() for cell in row), row
        names = [row[:2] for row in table.rows]
        assert len(names) == len(set(names)), table.title


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=lambda system: system.name)
def test_whatever_is_named_exists(system: System) -> None:
    from docs.generate import commands
    from sinks import schema

    text = "\n".join(here_of(system))
    series = {re.sub(r"_(bucket|sum|count)$", "", n) for n in re.findall(r"runnerstream_\w+", text)}
    shown = known_names()
    assert {name for name in series if name not in shown} == set()
    spoken = re.findall(r"`runnerstream ([a-z-]+(?: [a-z-]+)?)", text)
    existing = {command.partition(" ")[2] for command, _ in commands()}
    for each in spoken:
        assert any(full == each or full.split()[0] == each.split()[0] for full in existing), each
    made = "\n".join(migration.text for migration in schema.migrations())
    for name in re.findall(r"\b(?:table|view) `(\w+)`|\bFROM (\w+)", text):
        assert re.search(rf"(TABLE IF NOT EXISTS|REPLACE VIEW) {''.join(name)}\b", made), name
    views = (ROOT / "pipeline" / "web").glob("*.py")
    routes = "\n".join(path.read_text(encoding="utf-8") for path in views)
    for path in set(re.findall(r"`(/[a-z]+)[`?/]", text)):
        assert f'"{path}"' in routes, path


def names_in(query: str, declared: set[str]) -> set[str]:
    """The metrics that a query asks for, of those of a system; other names with two or more _."""
    words = set(re.findall(r"\b[a-z]+(?:_[a-z]+){2,}\b", query))
    return {
        name if name in declared else re.sub(r"_(bucket|sum|count)$", "", name) for name in words
    }


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=lambda system: system.name)
def test_panels_ask_for_what_is_declared(system: System) -> None:
    declared = {theirs.name for theirs in system.metrics}
    asked: set[str] = set()
    for panel in system.panels:
        for query in panel.queries:
            asked |= {
                re.sub(r"_(bucket|sum|count)$", "", name) if name not in declared else name
                for name in re.findall(r"\b[a-z]+_[a-z_]+_[a-z_]+\b", query)
                if name != "histogram_quantile" and name != "server_job"
            }
    assert asked <= declared


def test_a_setting_names_systems_in_our_order() -> None:
    assert names_of("") == ()
    assert names_of(",".join(f" {name} ,{name}" for name in reversed(NAMES))) == NAMES
    with pytest.raises(ValueError, match="tuits is no system"):
        names_of("tuits")


def test_an_option_that_names_no_system_is_refused() -> None:
    said = CliRunner().invoke(main, ["worker", "--compat", "tuits"], env={"RUNNERSTREAM_KAFKA": ""})
    assert said.exit_code == 2
    assert "tuits is no system whose names are served" in said.output


def test_always_is_a_rule_that_asks_for_nothing() -> None:
    source = From(metrics.TICKS, (Always("ok"),))
    assert source.place(()) == ("ok",)
