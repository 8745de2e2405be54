"""The result as a table for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

#: What the project promises itself; see benchmarks/README.md.
WANTED_RATIO: Final = 0.4
WANTED_P99_S: Final = 3.0
WANTED_TICK_MS: Final = 200
WANTED_STALL_TICKS: Final = 2
WANTED_GATEWAY_RATIO: Final = 0.7
WANTED_SLOW_S: Final = 1
WANTED_PANEL_MS: Final = 300

FLOOR: Final = (
    "floor: bare aiokafka consumer and idempotent producer, same parse; the same two records per "
    "changed job and batch, as long as the worker's; nothing kept, merged, computed or encoded"
)

Row = tuple[str, str, str]


def text(result: dict[str, Any]) -> str:
    """The table."""
    machine = result["machine"]
    lines = [
        f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, Python "
        f"{machine['python']}, load before {machine['load_before'][0]}; {result['broker']}",
        FLOOR,
        "",
    ]
    rows = list(_rows(result["parts"]))
    wide = max((len(name) for name, _, _ in rows), default=0)
    figures = max((len(figure) for _, figure, _ in rows), default=0)
    lines += [
        f"{name:<{wide}}  {figure:>{figures}}  {note}".rstrip() for name, figure, note in rows
    ]
    return "\n".join(lines)


def _rows(parts: dict[str, Any]) -> Iterator[Row]:
    if found := parts.get("throughput"):
        each = ", ".join(f"{r['ratio']:.2f}" for r in found["rounds"])
        yield "floor", f"{found['floor_per_second']:,.0f} facts/s", _us(found["floor_cpu_us"])
        yield "worker", f"{found['worker_per_second']:,.0f} facts/s", _us(found["worker_cpu_us"])
        bare = f"{found['bare_per_second']:,.0f} facts/s"
        yield "same fold, no framework", bare, _us(found["bare_cpu_us"])
        yield "worker / floor", f"{found['ratio']:.2f}", f"rounds {each}; wanted {WANTED_RATIO}"
        each = ", ".join(f"{r['framework_ratio']:.2f}" for r in found["rounds"])
        yield "worker / same fold", f"{found['framework_ratio']:.2f}", f"rounds {each}"
        yield "worker's memory after it", _mib(found["worker_rss"]), f"{found['facts']:,} facts"
    if found := parts.get("insert"):
        each = ", ".join(f"{r['ratio']:.2f}" for r in found["rounds"])
        yield (
            "insert floor",
            f"{found['floor_per_second']:,.0f} states/s",
            _us(found["floor_cpu_us"]),
        )
        yield "sink", f"{found['sink_per_second']:,.0f} states/s", _us(found["sink_cpu_us"])
        yield "sink / insert floor", f"{found['ratio']:.2f}", f"rounds {each}"
    if found := parts.get("memory"):
        start = found["start"]
        yield "empty worker", _mib(found["empty_rss"]), ""
        yield (
            "memory per live job",
            f"{found['bytes_per_job']:,.0f} bytes",
            f"{found['jobs']:,} jobs, {found['runs']:,} runs, after a start; right after folding "
            f"{found['bytes_per_job_folded']:,.0f}",
        )
        replayed = (
            f"{start['replay_per_second']:,.0f} records/s" if start["replay_s"] else "not seen"
        )
        yield "changelog replay", replayed, f"{start['changelog_records']:,} records"
        yield "start to ready", f"{start['ready_s']:.1f} s", ""
        yield "start to first batch done", f"{start['first_batch_s']:.1f} s", ""
    if found := parts.get("latency"):
        took = found["all"]
        gap = found["resolution_s"]
        yield (
            "event to ClickHouse p50",
            f"{took['p50'] * 1000:,.0f} ms",
            f"{found['effects']:,} effects at {found['offered_per_second']:,.0f} events/s; "
            f"resolution {gap['p50'] * 1000:.0f} ms, at worst {gap['max'] * 1000:.0f}",
        )
        yield (
            "event to ClickHouse p99",
            f"{took['p99'] * 1000:,.0f} ms",
            f"max {took['max'] * 1000:,.0f}; wanted {WANTED_P99_S * 1000:,.0f}",
        )
        yield "worker per event", _us(found["fold_cpu_us_per_event"]), "normalise and fold"
        yield "sink per event", _us(found["sink_cpu_us_per_event"]), ""
    if found := parts.get("tick"):
        yield from _ticks(found)
    if found := parts.get("stall"):
        yield from _stalls(found)
    if found := parts.get("gateway"):
        yield from _gateway(found)
    if found := parts.get("panels"):
        yield from _panels(found)


def _gateway(found: dict[str, Any]) -> Iterator[Row]:
    rounds = found["rounds"]
    for name in ("floor", "gateway"):
        each = sorted((r[name] for r in rounds), key=lambda one: one["per_second"])
        one = each[len(each) // 2]
        label = "bare aiohttp and producer" if name == "floor" else "gateway"
        yield (
            label,
            f"{one['per_second']:,.0f} deliveries/s",
            f"{_us(one['cpu_us'])}; p50 {one['p50_s'] * 1000:,.0f} ms, p99 "
            f"{one['p99_s'] * 1000:,.0f}; memory {_mib(one['rss_before'])}, then "
            f"{_mib(one['rss_after'])}",
        )
    told = ", ".join(f"{each['ratio']:.2f}" for each in rounds)
    wanted = f"rounds {told}; wanted {WANTED_GATEWAY_RATIO}"
    yield "gateway / bare", f"{found['ratio']:.2f}", wanted
    over = found["overload"]
    yield (
        f"{over['senders']} senders, {over['places']} places",
        f"{over['accepted']:,} accepted",
        f"{over['shed']:,} told to come again, p99 {over['p99_s'] * 1000:,.0f} ms; accepted and "
        f"not in Kafka: {over['accepted_and_not_written']}",
    )
    paced, rss = found["paced"], found["paced"]["rss"]
    answers = max(1, paced["accepted"] + paced["shed"] + paced["others"])
    yield (
        "thrice what it takes",
        f"{paced['offered_per_second']:,.0f} offered/s",
        f"of {paced['per_second']:,.0f} wanted; {paced['shed'] / answers:.0%} told to come again; "
        f"accepted p50 {_ms(paced['accepted_s']['p50'])}, p99 {_ms(paced['accepted_s']['p99'])}; "
        f"refused p99 {_ms(paced['shed_s']['p99'])}; waited for one of {paced['connections']:,} "
        f"connections {_ms(paced['waited_s']['p50'])}, at most {_ms(paced['waited_s']['max'])}; "
        f"memory {_mib(rss['before'])}, {_mib(rss['middle'])}, then {_mib(rss['after'])}; accepted "
        f"and not in Kafka: {paced['accepted_and_not_written']} of {paced['accepted']:,}",
    )
    slow = found["slow"]
    yield (
        f"beside {slow['connections']:,} slow ones",
        f"max {_ms(slow['beside_s']['max'])}",
        f"p50 {_ms(slow['beside_s']['p50'])}, alone {_ms(slow['alone_s']['p50'])}; open "
        f"{slow['open'][0]:,}, then {slow['open'][1]:,}, {slow['closed']:,} thrown out; accepted "
        f"{slow['accepted']:,} of {slow['ordinary']:,}; wanted at most {WANTED_SLOW_S} s",
    )


def _ticks(found: dict[str, Any]) -> Iterator[Row]:
    jobs, fleets = found["jobs"], found["fleets"]
    live = f"{jobs['live']:,} live jobs in one partition; wanted {WANTED_TICK_MS}"
    forgotten = f"{jobs['retention']['forgotten']:,} jobs and runs of one day are due at once"
    yield _tick("tick, nothing due", jobs["nothing"], live)
    usual, burst = (f"{jobs[each]['looked']['p50']:,.0f} jobs asked about" for each in _DUE)
    yield _tick("tick, an hour for each job", jobs["usual"], usual)
    yield _tick("tick, all due", jobs["burst"], burst)
    yield _tick("tick, jobs expire", jobs["retention"], forgotten)
    runners = f"{fleets['runners']:,} runners of {fleets['fleets']} fleets in one partition"
    yield _tick("fleets' tick", fleets["quiet"], runners)
    yield _tick("fleets' tick, runners beat", fleets["beating"], "each twice a minute")
    waiting = f"and {fleets['proposed']['waiting']:,} proposals in two minutes"
    yield _tick("fleets' tick, jobs propose", fleets["proposed"], waiting)


def _stalls(found: dict[str, Any]) -> Iterator[Row]:
    tick_ms = found["tick_s"] * 1000

    def row(name: str, took: dict[str, float] | None, note: str) -> Row:
        if took is None:
            return name, "none", note
        ticks = ", ".join(f"{each} {took[each] / tick_ms:.2f}" for each in took)
        return name, f"{took['p99']:,.0f} ms p99", f"in ticks: {ticks}; {note}"

    yield (
        "stuck jobs commanded",
        f"{found['commanded']} of {found['stuck']}",
        f"at {found['offered_per_second']:,.0f} events/s; {found['questions']} questions; "
        f"a tick is {found['tick_s']:g} s",
    )
    yield row("found to command", found["found_ms"], f"wanted {WANTED_STALL_TICKS} at p99")
    yield row("stall to command", found["took_ms"], "from when the rule applies")
    for kind, each in found["by_kind"].items():
        yield row(f"- {kind}", each["took_ms"], "")


def _panels(found: dict[str, Any]) -> Iterator[Row]:
    """Of each range how many were fast, then those that were not, the slowest first."""
    asked: list[dict[str, Any]] = found["panels"]
    for span in dict.fromkeys(each["range"] for each in asked):
        of = [each for each in asked if each["range"] == span]
        slow = [each for each in of if each["ms"] is None or each["ms"] > WANTED_PANEL_MS]
        slow.sort(key=lambda each: each["ms"] or float("inf"), reverse=True)
        yield (
            f"panels over {span}",
            f"{len(of) - len(slow)} of {len(of)}",
            f"within {WANTED_PANEL_MS} ms, of {found['jobs']:,} jobs in {found['days']} days",
        )
        for each in slow:
            name = f"- {each['board']}: {each['panel']}"
            if each["ms"] is None:
                yield name, "failed", each["error"]
            else:
                yield name, f"{each['ms']:,.0f} ms", f"{each['cpu_ms']:,.0f} ms CPU"


_DUE: Final = ("usual", "burst")


def _tick(name: str, case: dict[str, Any], note: str) -> Row:
    cpu, wall = case["cpu_ms"], case["wall_ms"]
    figure = f"{cpu['p50']:,.1f} ms CPU"
    return name, figure, f"p99 {cpu['p99']:,.1f}, wall p99 {wall['p99']:,.1f}; {note}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms"


def _us(value: float) -> str:
    return f"{value:.1f} us CPU each"


def _mib(value: float) -> str:
    return f"{value / 2**20:,.0f} MiB"
