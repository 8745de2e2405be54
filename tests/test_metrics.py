"""The metrics: declared once, all exported, all counted somewhere, and none by a wrong name."""

from __future__ import annotations

import ast
import asyncio
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mypy import api

from pipeline import folds, metrics, pulse, telemetry
from pipeline.agents.normalise import Normalise
from pipeline.agents.transaction import Done
from pipeline.effects import Note
from pipeline.exporter import EVERYTHING, Exporter
from pipeline.faust_safe import sensor
from pipeline.ledger import LIVE
from pipeline.metrics import Level
from pipeline.settings import Settings
from pipeline.windows import SIZES_S
from topics.catalogue import JOBS
from topics.models import Family

ROOT = Path(__file__).resolve().parents[1]

#: One of each kind of note, and of what is set elsewhere; fleets beyond the second are `other`.
NOTES: list[Note[Any]] = [
    Note(metrics.WEBHOOKS, ("workflow_job",)),
    Note(metrics.WEBHOOK_LAG, (), 0.3),
    Note(metrics.IGNORED_WEBHOOKS, ("ping",)),
    Note(metrics.UNROUTED, ("no_fleet",)),
    Note(metrics.WEBHOOK_JOBS, ("completed", "accepted"), 2.0),
    Note(metrics.ODD_FIELDS, ("occurred_at", "future")),
    Note(metrics.ODD_FIELDS, ("envelope", "unusable"), 3.0),
    Note(metrics.LIFECYCLE_EVENTS, ("job.claimed",), 2.0),
    Note(metrics.TRANSITIONS, ("a", "queued"), 2.0),
    Note(metrics.TRANSITIONS, ("a", "claimed")),
    Note(metrics.TRANSITIONS, ("b", "running")),
    Note(metrics.TRANSITIONS, ("c", "claimed")),
    Note(metrics.REQUEUES, ("a",)),
    Note(metrics.QUEUE_TO_CLAIM_SECONDS, ("a",), 2.5),
    Note(metrics.COMPLETIONS, ("a", "success")),
    Note(metrics.TIMINGS["queue"], ("a",), 3.2),
    Note(metrics.TIMINGS["claim_to_start"], ("a",), 0.7),
    Note(metrics.TIMINGS["run"], ("b",), 100.0),
    Note(metrics.TIMINGS["total"], ("d",), 7200.0),
    Note(metrics.TIMINGS["total"], ("e",), 7200.0),
    Note(metrics.REVISED_TIMINGS, ("run",), 2.0),
    Note(metrics.MISSING_TIMINGS, ("queue", "no_queued")),
    Note(metrics.CLAMPED_TIMINGS, ("total",)),
    Note(metrics.LATE_SAMPLES, ("conclusion",)),
    Note(metrics.DUPLICATE_FACTS, (), 5.0),
    Note(metrics.OUT_OF_ORDER_FACTS, ()),
    Note(metrics.CROWDED_FACTS, ()),
    Note(metrics.FUTURE_TIMES, ()),
    Note(metrics.REFUSED_TICKS, ("past",)),
    Note(metrics.HEALED_CLOCKS, ()),
    Note(metrics.EXPIRED_FACTS, ()),
    Note(metrics.EXPIRED_JOBS, ("completed",), 4.0),
    Note(metrics.CLOSED_WINDOWS, ("60",), 9.0),
    Note(metrics.DEAD_LETTERS, ("fold", "not_json")),
    Note(metrics.STALLS_OPENED, ("orphan",)),
    Note(metrics.RECOVERY_PROBES, ("orphan",), 2.0),
    Note(metrics.RECOVERY_PROPOSALS, ("requeue",)),
    Note(metrics.RECOVERY_CLOSED, ("gone",)),
    Note(metrics.STRANDED_SECONDS, ("b", "orphan"), 312.0),
    Note(metrics.RECOVERY_OVER, ("orphan",)),
    Note(metrics.RECOVERY_DONE, ("orphan", "requeue")),
    Note(metrics.RECOVERY_SWEEPS, (), 3.0),
    Note(metrics.RECOVERY_COMMANDS, ("requeue",), 3.0),
    Note(metrics.RECOVERY_WITHHELD, ("cooling",)),
    Note(metrics.RECOVERY_OUTCOMES, ("requeue", "done"), 2.0),
    Note(metrics.RECOVERY_SWITCHES, ("paused",)),
]
#: Fleets beyond the second share a label: depths add up, and the oldest and the worst is shown.
LIVE_JOBS: list[Level] = [
    (metrics.JOBS, ("a", "queued"), 2),
    (metrics.OLDEST, ("a", "queued"), 1.5),
    (metrics.JOBS, ("b", "running"), 1),
    (metrics.OLDEST, ("b", "running"), 0),
    (metrics.JOBS, ("c", "queued"), 4),
    (metrics.OLDEST, ("c", "queued"), 70),
    (metrics.JOBS, ("d", "queued"), 1),
    (metrics.OLDEST, ("d", "queued"), 0.5),
]
#: Of two partitions.
STALLS: list[Level] = [
    (metrics.STALLS_OPEN, ("orphan",), 2),
    (metrics.STALLS_OLDEST, ("orphan",), 9.5),
    (metrics.STALLS_OPEN, ("orphan",), 1),
    (metrics.STALLS_OLDEST, ("orphan",), 20),
]
LEVELS: list[Level] = [
    (metrics.RECOVERY_BREAKER_OPEN, ("a",), 1),
    (metrics.RECOVERY_MODE, ("a", "live"), 1),
    (metrics.RECOVERY_BREAKER_OPEN, ("b",), 0),
    (metrics.RECOVERY_MODE, ("b", "paused"), 1),
    (metrics.RECOVERY_BREAKER_OPEN, ("c",), 0),
    (metrics.RECOVERY_MODE, ("c", "live"), 1),
    (metrics.RECOVERY_BREAKER_OPEN, ("d",), 1),
    (metrics.RECOVERY_MODE, ("d", "dry_run"), 1),
]

#: One of everything that families of telemetry count and show: that events lead to them, the tests
#: of each family tell.
_OF_FAMILIES: list[tuple[metrics.Metric[Any], tuple[str, ...]]] = [
    (metric, ("a",) * metric.by_fleet + tuple(
        label.values[-1] for label in metric.labels[metric.by_fleet :]
        if isinstance(label.values, tuple)
    ))
    for metric in telemetry.CATALOGUE
]  # fmt: skip
TELEMETRY_NOTES: list[Note[Any]] = [
    Note(metric, labels, 1.0)
    for metric, labels in _OF_FAMILIES
    if isinstance(metric, metrics.Counter | metrics.Histogram)
]
TELEMETRY: list[Level] = [
    (metric, labels, 1.0) for metric, labels in _OF_FAMILIES if isinstance(metric, metrics.Gauge)
]


def text_of(exporter: Exporter) -> str:
    async def pause() -> None:
        pass

    return asyncio.run(exporter.exposition(pause)).decode()


@pytest.fixture
def told() -> str:
    exporter = Exporter(max_fleets=2)
    for levels in (LIVE_JOBS, STALLS, LEVELS, TELEMETRY):
        exporter.watch_levels(partial(iter, levels))
    exporter.note(NOTES)
    exporter.note(TELEMETRY_NOTES)
    exporter.done(Done("fold", 700, 0.3, 0.02, writes={}))
    exporter.missed(JOBS, 12)
    exporter.count(metrics.TICKS, (), 8)
    for metric in (*sensor.CATALOGUE, *pulse.CATALOGUE):
        labels = tuple(label.values[0] for label in metric.labels)
        if isinstance(metric, metrics.Gauge):
            exporter.set(metric, labels, 2)
        else:
            exporter.count(metric, labels, 3)
    exporter.set(metrics.TICK_LAG, (), 1.5)
    exporter.set(metrics.CONSUMER_LAG, (JOBS,), 3)
    exporter.set(metrics.READY, (), 1)
    exporter.set(metrics.ROLE_UP, ("sink",), 1)
    exporter.count(metrics.ROLE_RESTARTS, ("sink",), 2)
    return text_of(exporter)


def test_what_dashboards_read_is_as_it_was(told: str) -> None:
    """Names, types, labels, buckets and values. Renew the file only for a change that is meant."""
    expected = (ROOT / "tests" / "data" / "exposition.txt").read_text(encoding="utf-8")
    assert told.splitlines() == expected.splitlines()


def test_every_metric_is_exported_and_can_rise(told: str) -> None:
    lines = [line for line in told.splitlines() if not line.startswith("#")]
    for metric in EVERYTHING:
        name = metric.shown + ("_count" if metric.kind == "histogram" else "")
        values = [
            float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith((f"{name}{{", f"{name} "))
        ]
        assert max(values, default=0) > 0, metric.shown


def test_every_series_of_closed_lists_exists_from_the_start() -> None:
    text = text_of(Exporter())
    for metric in EVERYTHING:
        if metric.by_fleet or not metric.in_advance:
            continue
        for label in metric.labels:
            for value in label.values if isinstance(label.values, tuple) else ():
                assert any(
                    line.startswith(metric.shown) and f'{label.name}="{value}"' in line
                    for line in text.splitlines()
                ), (metric.shown, label.name, value)
    assert 'event="workflow_job"} 0.0' in text
    assert 'field="envelope",reason="future"} 0.0' in text


def test_fleets_come_first_and_names_are_told_apart() -> None:
    shown = [metric.shown for metric in EVERYTHING]
    assert len(set(shown)) == len(shown)
    for metric in EVERYTHING:
        assert not any(label.values is metrics.Source.FLEET for label in metric.labels[1:])
        assert metric.in_advance or metric.kind == "gauge", "a counter begins at 0"
        assert metric.help
        assert metric.unit
        if metric.name.endswith("_seconds"):
            assert metric.unit == "seconds"


def used(source: str) -> set[str]:
    """Names that a source refers to, and does not only set."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {node.id for node in nodes if isinstance(node, ast.Name) and type(node.ctx) is ast.Load}
    return names | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def test_every_metric_is_used() -> None:
    """Whatever a module of ours declares, some code refers to by its name."""
    found: set[str] = set()
    for path in (ROOT / "pipeline").rglob("*.py"):
        found |= used(path.read_text(encoding="utf-8"))
    modules = [module for name, module in sys.modules.items() if name.startswith("pipeline.")]
    names = {each: name for module in modules for name, each in vars(module).items()
             if isinstance(each, metrics.Metric)}  # fmt: skip
    assert "TIMINGS" in found
    assert {names[metric] for metric in EVERYTHING} - found == set()
    assert set(EVERYTHING) == set(names), "a metric that is declared is in the list of all"
    assert used("exporter.count(metrics.TICKS, ())\nTICK_LAG = READY") == {
        "exporter", "count", "metrics", "TICKS", "READY",
    }  # fmt: skip


SNIPPET = """
from pipeline import metrics
from pipeline.effects import Note
from pipeline.exporter import Exporter
from pipeline.settings import Settings
from pipeline.ledger import LIVE
from pipeline.windows import SIZES_S
from pipeline.ledger.pending import Pending

Note(metrics.EXPIRED_FACTS, ())
Pending().note(metrics.TRANSITIONS, ("fleet", "queued"))
Exporter().set(metrics.READY, (), 1)
Note(metrics.EXPIRED_FACT, ())  # no such metric
Note(metrics.EXPIRED_FACTS, ("one",))  # a label too many
Note(metrics.TRANSITIONS, ("fleet",))  # one too few
Pending().note(metrics.TRANSITIONS, ("fleet",))  # one too few
Pending().note("transitions", ("fleet", "queued"))  # a name is no metric
Note(metrics.READY, ())  # a gauge is not counted
Exporter().set(metrics.TICKS, (), 1)  # a counter is not set
"""


def test_a_wrong_name_or_number_of_labels_is_a_type_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    snippet = tmp_path / "snippet.py"
    snippet.write_text(SNIPPET)
    said, trouble, _ = api.run(
        ["--config-file", "pyproject.toml", "--cache-dir", str(tmp_path / "cache"), str(snippet)]
    )
    assert not trouble
    wrong = {
        int(line.split(":")[1]) for line in said.splitlines() if f"{snippet.name}:" in line
        and ": error:" in line
    }  # fmt: skip
    expected = {number for number, line in enumerate(SNIPPET.splitlines(), 1) if "  # " in line}
    assert wrong == expected, said


def test_closed_lists_are_those_of_the_rules() -> None:
    """The rules keep lists of their own, which metrics must not import."""
    (sizes,), (_, live) = metrics.CLOSED_WINDOWS.labels, metrics.JOBS.labels
    assert sizes.values == tuple(str(size_s) for size_s in SIZES_S)
    assert live.values == LIVE
    (stages,) = metrics.RECORDS.labels
    declared = [declare(Settings()).stage for declare in (folds.jobs, *folds.OTHERS)]
    assert stages.values == (Normalise.stage, *declared)
    assert tuple(metrics.TIMINGS) == tuple(Family)
