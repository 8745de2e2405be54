"""A real Prometheus reads our pages: what its checker says of them, and what it then answers."""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Final

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from pipeline import metrics
from pipeline.compat.model import Panel
from pipeline.compat.names import NAMES
from pipeline.compat.page import Page
from pipeline.compat.systems import SYSTEMS, systems
from pipeline.compat.tuist import LONG, SHORT
from pipeline.compat.tuist_pools import BOOT_BUCKETS, DISPATCH_BUCKETS, OUTCOMES
from pipeline.compat.tuist_shows import PANELS
from pipeline.exporter import EVERYTHING, Exporter
from pipeline.gateway.metrics import GatewayMetrics
from pipeline.metrics import Gauge, Level, Source
from pipeline.prober.metrics import ProberMetrics
from pipeline.redeliver.metrics import RedeliverMetrics
from pipeline.relay.metrics import RelayMetrics
from pipeline.simulate.telemetry import Told
from pipeline.simulate.telemetry_pools import play
from sinks.metrics import SinkMetrics
from tests.support.clients import ClientUnavailable
from tests.support.compat_world import RECOVERED, Notebook, World, recover
from tests.support.house import House
from tests.support.prometheus import Prometheus, Vector, promtool
from tests.support.telemetry import MINUTE, Seen, event, tick
from tests.support.telemetry import START as TOLD_AT
from tests.test_compat import names_in, no_pause, text_of
from topics.events.dispatch import DispatchRequested
from topics.events.pools import BootOutcome, MachineBooted

#: Accounts that are enabled.
ACCOUNTS: Final = 7
DATA: Final = Path(__file__).parent / "data"

REGISTRIES: Final[dict[str, Callable[[], CollectorRegistry]]] = {
    "sink": lambda: SinkMetrics().registry,
    "gateway": lambda: GatewayMetrics().registry,
    "prober": lambda: ProberMetrics().registry,
    "relay": lambda: RelayMetrics().registry,
    "redeliver": lambda: RedeliverMetrics().registry,
}


def checked(page: bytes) -> tuple[int, list[str]]:
    """Exit code of ``promtool check metrics``, and its complaints."""
    try:
        code, said = promtool("check", "metrics", told=page)
    except ClientUnavailable as why:
        pytest.skip(str(why))
    return code, said.splitlines()


# --- the pages --------------------------------------------------------------------------------


@pytest.mark.parametrize("role", REGISTRIES)
def test_of_the_pages_beside_a_worker_nothing_is_to_be_said(role: str) -> None:
    assert checked(generate_latest(REGISTRIES[role]())) == (0, [])


def every_level() -> list[Level]:
    """Each series of each gauge."""
    found: list[Level] = []
    for gauge in EVERYTHING:
        if isinstance(gauge, Gauge):
            values = [("a",) if isinstance(label.values, Source) else label.values
                      for label in gauge.labels]  # fmt: skip
            found += [(gauge, labels, 1.0) for labels in product(*values)]
    return found


def every_series() -> tuple[Page, Exporter]:
    """All that can be counted was, in one fleet."""
    page = Page(systems(NAMES))
    exporter = Exporter(beside=page)
    for group in {each.group for each in EVERYTHING if each.by_fleet}:
        exporter.fleet("a", group)
    exporter.watch_levels(lambda: iter(every_level()))
    return page, exporter


def test_of_our_own_page_nothing_is_to_be_said() -> None:
    _, exporter = every_series()
    assert checked(asyncio.run(exporter.exposition(no_pause))) == (0, [])


def test_what_is_to_be_said_of_the_other_names_is_known() -> None:
    """They are those systems' names, so they stay; what is new in this list is ours to mend."""
    page, exporter = every_series()
    text = text_of(page, exporter)
    served = [each for system in SYSTEMS.values() for each in system.metrics if each.follows]
    for each in served:
        assert re.search(rf"^{each.name}(_count)?[{{ ]", text, re.MULTILINE), each.name
    known = (DATA / "compat_warnings.txt").read_text(encoding="utf-8").splitlines()
    code, said = checked(text.encode())
    assert list(dict.fromkeys(said)) == known, "of some it is said once a series"
    assert code == (3 if known else 0)


def test_a_page_that_cannot_be_read_would_be_noticed() -> None:
    code, said = checked(b"# TYPE a_total counter\na_total{b=} 1\n")
    assert code not in (0, 3)
    assert said


def test_the_page_is_there_when_it_is_asked_for() -> None:
    page, exporter = every_series()
    with House({}) as house:
        status, answer = house.get("/metrics/compat")
        assert (status, answer["status"]) == (404, 404)
        assert "RUNNERSTREAM_COMPAT" in answer["error"]
        assert "--compat" in answer["error"]
        house.worker.metrics, house.worker.compat = exporter, page
        status, text = house.get("/metrics/compat")
        assert status == 200
        assert text == text_of(page, exporter)
        assert house.get("/metrics/compat?x=1")[0] == 400
        assert "tuist" not in house.get("/metrics")[1]


# --- the dashboard ----------------------------------------------------------------------------

#: What a panel's query must answer.
Check = Callable[[Vector], object]


class Truth:
    """What the dashboard must show, by the simulator's account."""

    def __init__(self, world: World, told: Told) -> None:
        self._jobs = world.jobs
        self._told = told
        self._deliveries = world.deliveries()
        self.fleets = sorted({job.fleet for job in self._jobs})
        self._waits = merged(world.waits())
        self._timings = {name: merged(world.timings(name)) for name in ("queue", "run", "total")}

    def checks(self) -> dict[str, list[Check]]:
        """By the title of the panel, one for each of its queries."""
        queued = self._by_fleet(lambda job: job.status == "queued")
        claimed = self._by_fleet(lambda job: job.status == "claimed")
        held = self._by_fleet(lambda job: job.status in ("starting", "running"))
        enqueued = self._by_fleet(lambda job: job.queued_at is not None)
        ever_claimed = self._by_fleet(lambda job: job.claimed_at is not None)
        ran = self._by_fleet(lambda job: job.started_at is not None or job.runner)
        ended = Counter(job.conclusion or "unknown" for job in self._jobs
                        if job.completed_at is not None)  # fmt: skip
        states = {("claimed", fleet): n for fleet, n in claimed.items()}
        states |= {("running", fleet): n for fleet, n in held.items()}
        told = {"queued": "queued", "waiting": "queued", "completed": "completed"}
        webhooks = {(action, told[action]): n for (action, outcome), n in self._deliveries.items()
                    if outcome == "accepted" and action in told}  # fmt: skip
        webhooks["other", "unknown"] = self._deliveries["other", "malformed"]
        waits, timings = quantiles(self._waits, SHORT), self._timings
        to_running = quantiles(timings["queue"], SHORT)
        return {
            "Queued jobs": [is_(queued.total())],
            "Pre-mint (claimed)": [is_(claimed.total())],
            "Running builds": [is_(held.total())],
            "Mac minis reporting": [is_(1)],
            "Jobs enqueued / sec by fleet": [rates(enqueued, 300, "fleet")],
            "Jobs completed / sec by conclusion": [rates(ended, 300, "conclusion")],
            "Claim and run rate": [
                rates({(): ever_claimed.total()}, 300), rates({(): ran.total()}, 300),
            ],
            "Webhook deliveries by action and outcome": [
                rates(webhooks, 300, "action", "outcome")
            ],
            "Queue time (enqueue → claim)": waits,
            "Enqueue → running (JIT-mint included)": [*to_running[:2], between(
                [bound - other for bound, other in zip(
                    bounds(timings["queue"], SHORT, 0.5),
                    reversed(bounds(self._waits, SHORT, 0.5)), strict=True)]
            )],
            "Run time (running → completed)": quantiles(timings["run"], LONG),
            "Total time (enqueue → completed)": quantiles(timings["total"], LONG),
            "Queue time distribution (heatmap)": [rates(
                {le: sum(ms <= float(le) for ms in self._waits) for le in labels_of(SHORT)},
                300, "le",
            )],
            "Queue length by fleet": [levels(queued, "fleet")],
            "Inflight claims by fleet + state": [levels(states, "lifecycle_state", "fleet")],
            "Recovery rate by kind": [rates(RECOVERED, 900, "kind")],
            **self._of_pools(held),
        }  # fmt: skip

    def _of_pools(self, held: Counter[str]) -> dict[str, list[Check]]:
        """Of dispatchers and pools."""
        sizes = {
            state: {
                fleet: n
                for (name, fleet, *what), n in self._told.levels.items()
                if name == "pool_runners" and what == [state]
            }
            for state in ("desired", "observed")
        }
        requests, asked, boots = Counter[str](), [], Counter[str]()
        booted = []
        for each in self._told.events:
            if isinstance(each, DispatchRequested):
                requests[OUTCOMES[each.outcome.value]] += 1
                asked.append(each.duration_ms or 0)
            elif isinstance(each, MachineBooted) and each.outcome is BootOutcome.READY:
                boots[each.fleet] += 1
                booted.append((each.duration_ms or 0) / 1000)
        used = {fleet: held[fleet] / max(n, 1) for fleet, n in sizes["observed"].items()}
        return {
            "Desired runners": [is_(sum(sizes["desired"].values()))],
            "Accounts enabled": [is_(ACCOUNTS)],
            "RunnerPool replicas (desired vs observed)": [
                levels(sizes["desired"], "fleet"), levels(sizes["observed"], "fleet"),
            ],
            "Pool utilisation (running / observed)": [levels(used, "fleet")],
            "Dispatch requests / sec by outcome": [rates(requests, 300, "outcome")],
            "Dispatch endpoint latency": quantiles(sorted(asked), DISPATCH_BUCKETS),
            "Boot time (p50 / p95 / p99)": quantiles(sorted(booted), BOOT_BUCKETS),
            "Boots / sec by pool": [rates(boots, 300, "pool")],
            "Boot time distribution (heatmap)": [rates(
                {le: sum(s <= float(le) for s in booted) for le in labels_of(BOOT_BUCKETS)},
                300, "le",
            )],
        }  # fmt: skip

    def _by_fleet(self, wanted: Callable[[Any], object]) -> Counter[str]:
        return Counter(job.fleet for job in self._jobs if wanted(job))


def merged(by_fleet: dict[str, list[int]]) -> list[int]:
    return sorted(ms for each in by_fleet.values() for ms in each)


def is_(value: float) -> Check:
    """One value."""
    return lambda found: list(found.values()) == [value] or pytest.fail(f"{found}, not {value}")


def levels(wanted: Any, *labels: str) -> Check:
    """The values that are not 0, by labels; all others are 0."""

    def check(found: Vector) -> None:
        told = {
            tuple(dict(where)[label] for label in labels): value for where, value in found.items()
        }
        named = {key if isinstance(key, tuple) else (key,): n for key, n in wanted.items() if n}
        assert {key: value for key, value in told.items() if value} == pytest.approx(named)
        assert named

    return check


def rates(wanted: Any, window_s: int, *labels: str) -> Check:
    """Rates of what rose from 0 within the window: asked for at the time of the last sample, there
    is nothing to extrapolate."""

    def check(found: Vector) -> None:
        levels(wanted, *labels)({where: _whole(value * window_s) for where, value in found.items()})

    return check


def _whole(value: float) -> float:
    assert value == pytest.approx(round(value), abs=1e-6)
    return round(value)


def labels_of(buckets: Iterable[float]) -> Iterator[str]:
    yield from (f"{bound:g}" if bound < 1e6 else str(int(bound)) for bound in buckets)
    yield "+Inf"


def bounds(samples: Sequence[float], buckets: tuple[float, ...], q: float) -> tuple[float, float]:
    """Those of the bucket that holds a quantile. Beyond the last it is the last."""
    true = samples[max(0, math.ceil(q * len(samples)) - 1)]
    for low, high in pairwise((0.0, *buckets)):
        if true <= high:
            return low, high
    return buckets[-1], buckets[-1]


def between(limits: Iterable[float]) -> Check:
    low, high = limits

    def check(found: Vector) -> None:
        (value,) = found.values()
        assert low <= value <= high

    return check


def quantiles(samples: Sequence[float], buckets: tuple[float, ...]) -> list[Check]:
    assert len(samples) > 20
    return [between(bounds(samples, buckets, q)) for q in (0.5, 0.95, 0.99)]


def test_tuists_dashboard_shows_the_truth(tmp_path: Path) -> None:
    """Every panel whose metrics are served, as a real Prometheus answers it."""
    notebook, recovered = Notebook(), Notebook()
    world = World(notebook, seed=21, jobs=250, minutes=40)
    world.run()
    recover(recovered)
    # Of those jobs only what recovery did counts here: their fleet is no part of the world.
    of_recovery = (metrics.RECOVERY_DONE, metrics.RECOVERY_OVER, metrics.STRANDED_SECONDS)
    notes = [*notebook.notes, *(n for n in recovered.notes if n.metric in of_recovery)]
    fleets = sorted({job.fleet for job in world.jobs})
    told = play(fleets, TOLD_AT, TOLD_AT + 10 * MINUTE, seed=3)
    seen_by_fold = Seen([*told.events, event("accounts.sample", 9 * MINUTE, enabled=ACCOUNTS),
                         tick(10 * MINUTE)])  # fmt: skip
    notes += seen_by_fold.notes
    truth = Truth(world, told)
    page = Page(systems(["tuist"]))
    exporter = Exporter(beside=page)
    for fleet in truth.fleets:
        exporter.fleet(fleet)
        for group in (metrics.CLAIMS, "dispatch", "pools"):
            exporter.fleet(fleet, group)
    with House({}) as house:
        house.worker.metrics, house.worker.compat = exporter, page
        address = house.url.removeprefix("http://")
        pages = {"server": (address, "/metrics/compat"), "tart-kubelet": (address, "/metrics")}
        try:
            prometheus = Prometheus(tmp_path, pages)
        except ClientUnavailable as why:
            pytest.skip(str(why))
        with prometheus:
            prometheus.wait_for("sum(tuist_runners_job_enqueued_count)", bool)

            def happen() -> None:
                exporter.note(notes)
                exporter.watch_levels(world.live_jobs)
                exporter.watch_levels(seen_by_fold.ledger.levels)

            house.call(happen)
            last = 'tuist_runners_queue_length{job="server"}'
            seen = prometheus.wait_for(f"timestamp({last})", lambda v: len(v) > 1)
            (at,) = set(seen.values())
            asked = 0
            for panel, check, query in questions(truth):
                text = filled(query, truth.fleets)
                found = prometheus.query(text, at)
                asked += 1
                try:
                    check(found)
                except (AssertionError, ValueError) as error:
                    raise AssertionError(f"{panel.title}: {text}: {found}") from error
    assert len(PANELS) == 25
    assert asked == sum(len(panel.queries) for panel in PANELS)


def served(panel: Panel) -> bool:
    """Whether all that a panel asks for is served."""
    tuist = SYSTEMS["tuist"].metrics
    here = {each.name for each in tuist if each.follows}
    declared = {each.name for each in tuist}
    return all(names_in(query, declared) <= here for query in panel.queries)


def questions(truth: Truth) -> Iterator[tuple[Panel, Check, str]]:
    """Every query of every panel that is served, and what it must answer."""
    checks = truth.checks()
    assert set(checks) == {panel.title for panel in PANELS if served(panel)}
    for panel in PANELS:
        for check, query in zip(checks.get(panel.title, ()), panel.queries, strict=False):
            yield panel, check, query
        assert len(checks.get(panel.title, panel.queries)) == len(panel.queries)


def filled(query: str, fleets: Iterable[str]) -> str:
    """A query with the variables of the dashboard set."""
    values = {"$server_job": "server", "$fleet": "|".join(fleets), "$pool": "|".join(fleets)}
    for name, value in values.items():
        query = query.replace(name, value)
    assert "$" not in query
    return query
