"""What the topics say in the end, and how it compares with the simulator's truth.

Read from the changelogs and output topics themselves, with a plain consumer: no worker, no view
and no table of ours is asked.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
from clickhouse_driver import Client
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

from pipeline.simulate import Truth
from pipeline.simulate.origins import Origin
from pipeline.windows import STRANDED
from tests.support import PATIENCE
from topics.catalogue import DEAD_LETTERS, JOB_STATES, LIFECYCLE, WEBHOOKS


def consumer(bootstrap: str) -> Any:
    return KafkaConsumer(
        bootstrap_servers=bootstrap,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )


def read_topic(bootstrap: str, topic: str) -> Iterator[Any]:
    """Every record of a topic up to its end now, partition by partition."""
    client = consumer(bootstrap)
    try:
        tps = [TopicPartition(topic, p) for p in sorted(client.partitions_for_topic(topic))]
        ends = {tp: end for tp, end in client.end_offsets(tps).items() if end}
        client.assign(list(ends))
        starts = client.beginning_offsets(list(ends)) if ends else {}
        left = {tp for tp, end in ends.items() if starts[tp] < end}
        while left:
            for tp, records in client.poll(1000).items():
                yield from records
                if records and records[-1].offset >= ends[tp] - 1:
                    left.discard(tp)
            for tp in list(left):
                if client.position(tp) >= ends[tp]:
                    left.discard(tp)
    finally:
        client.close()


def compacted(bootstrap: str, topic: str) -> dict[bytes, bytes]:
    """The last value per key; deleted keys are absent."""
    last: dict[bytes, bytes] = {}
    for record in read_topic(bootstrap, topic):
        if record.value is None:
            last.pop(record.key, None)
        else:
            last[record.key] = record.value
    return last


def lag(bootstrap: str, group: str, topics: list[str]) -> int:
    """Records the group has not committed yet."""
    client = KafkaConsumer(bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False)
    try:
        total = 0
        for topic in topics:
            tps = [TopicPartition(topic, p) for p in client.partitions_for_topic(topic) or ()]
            for tp, end in client.end_offsets(tps).items():
                total += end - (client.committed(tp) or 0)
        return total
    finally:
        client.close()


def committed(bootstrap: str, group: str, tp: Any) -> int | None:
    """The group's committed offset of a partition."""
    client = KafkaConsumer(bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False)
    try:
        offset: int | None = client.committed(TopicPartition(tp.topic, tp.partition))
        return offset
    finally:
        client.close()


def ends(bootstrap: str, tps: list[Any]) -> dict[Any, int]:
    """Where the partitions end, marks of transactions included."""
    client = KafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    try:
        wanted = [TopicPartition(tp.topic, tp.partition) for tp in tps]
        found: dict[Any, int] = client.end_offsets(wanted)
        return found
    finally:
        client.close()


def delete(bootstrap: str, topic: str) -> None:
    """Delete a topic."""
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        admin.delete_topics([topic])
    finally:
        admin.close()


def wait_drained(
    bootstrap: str, group: str, topics: list[str], timeout: float, ticks: int = 16
) -> None:
    """Return when the group has committed everything, but for what a clock may keep adding."""
    deadline = time.monotonic() + PATIENCE * timeout
    quiet = 0
    while quiet < 3:
        left = lag(bootstrap, group, topics)
        quiet = quiet + 1 if left <= ticks else 0
        if time.monotonic() > deadline:
            raise AssertionError(f"{group} is still {left} records behind after {timeout:.0f} s")
        time.sleep(0.5)


def job_states(values: dict[bytes, bytes]) -> dict[str, dict[str, Any]]:
    """The job states among the values of a changelog or of ``runners.job-states``."""
    records = (msgspec.json.decode(value) for value in values.values())
    return {r["key"]: r for r in records if r["kind"] == "job.state"}


def differences_in_jobs(states: dict[str, dict[str, Any]], truth: Truth) -> list[str]:
    """How the states differ from the truth; empty when they do not."""
    wrong = [f"{key}: not in the truth" for key in states.keys() - truth.jobs.keys()]
    for key, want in truth.jobs.items():
        got = states.get(key)
        if got is None:
            wrong.append(f"{key}: missing")
            continue
        seen = {
            "status": got["status"],
            "fleet": got["fleet"],
            "conclusion": got.get("conclusion"),
            "queued_at": got.get("queued_at"),
            "started_at": got.get("started_at"),
            "completed_at": got.get("completed_at"),
            "claimed_at": got.get("claimed_at"),
            "abandoned_ms": got.get("abandoned_ms"),
            "copied": got.get("copied", False),
            "origin": tuple(
                got["job"].get(name, blank) for name, blank in Origin._field_defaults.items()
            ),
            "steps": tuple(
                tuple(map(step.get, ("number", "name", "conclusion", "started_at", "completed_at")))
                for step in got.get("steps", ())
            ),
            "timings": {
                family: t["ms"] if "ms" in t else t["missing"]
                for family, t in got["timings"].items()
            },
        }
        wrong += [
            f"{key}: {name} is {value!r}, should be {getattr(want, name)!r}"
            for name, value in seen.items()
            if value != getattr(want, name)
        ]
    return wrong


def window_sums(
    panes: dict[bytes, bytes],
) -> tuple[dict[tuple[str, str, int, int], tuple[int, int]], dict[tuple[str, str, int, int], int]]:
    """Count and sum per (fleet, family, size, start), and conclusions, from the pane changelog.

    Without stranded time: that is about what recovery found, and the truth is about jobs.
    """
    sums: dict[tuple[str, str, int, int], list[int]] = defaultdict(lambda: [0, 0])
    conclusions: Counter[tuple[str, str, int, int]] = Counter()
    for raw, value in panes.items():
        name, (begin, _) = msgspec.json.decode(raw)
        fleet = name.partition("|")[2]
        start = round(begin * 1000)
        pane = msgspec.json.decode(value)
        for size in (60_000, 300_000, 3_600_000):
            first = start // size * size
            for family, (count, sum_ms, zeros, bins) in pane.get("families", {}).items():
                assert count == zeros + sum(bins.values())
                if family.startswith(STRANDED):
                    continue
                cell = sums[fleet, family, size // 1000, first]
                cell[0] += count
                cell[1] += sum_ms
            for conclusion, n in pane.get("conclusions", {}).items():
                conclusions[fleet, conclusion, size // 1000, first] += n
    return (
        {where: (count, total) for where, (count, total) in sums.items() if count or total},
        {where: n for where, n in conclusions.items() if n},
    )


def differences(got: dict[Any, Any], want: dict[Any, Any]) -> list[str]:
    """Where two mappings differ, in words."""
    return [
        f"{key}: {got.get(key)!r}, should be {want.get(key)!r}"
        for key in sorted(got.keys() | want.keys(), key=repr)
        if got.get(key) != want.get(key)
    ]


def older_after_newer(bootstrap: str, app_id: str = "runnerstream") -> list[str]:
    """Records that know less than one before them under the same key: a former owner wrote them.

    A job's ``rev`` only grows, and so does a pane's fence, until the key is deleted.
    """
    wrong = []
    for topic, version in (
        (f"{app_id}-jobs-changelog", "rev"),
        (f"{app_id}-windows-changelog", "fence"),
        (JOB_STATES, "rev"),
    ):
        last: dict[bytes, int] = {}
        for record in read_topic(bootstrap, topic):
            if record.value is None:
                last.pop(record.key, None)
                continue
            now = msgspec.json.decode(record.value).get(version, 0)
            if now < last.get(record.key, 0):
                wrong.append(
                    f"{topic} {record.partition}@{record.offset} {record.key!r}: "
                    f"{version} {now} after {last[record.key]}"
                )
            last[record.key] = max(now, last.get(record.key, 0))
    return wrong


def check_topics(
    bootstrap: str, truth: Truth, app_id: str = "runnerstream", seconds: float = 30.0
) -> dict[str, int]:
    """Compare tables (their changelogs), job-states, windows and dead letters with the truth.

    What a broker has committed shows in one topic sooner than in another, and a tick late, so it is
    compared again for so many seconds. Raises AssertionError naming the first differences. Returns
    how much was compared.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            return _check_topics(bootstrap, truth, app_id)
        except AssertionError:
            if time.monotonic() > until:
                raise
        time.sleep(1)


def _check_topics(bootstrap: str, truth: Truth, app_id: str) -> dict[str, int]:
    states = job_states(compacted(bootstrap, f"{app_id}-jobs-changelog"))
    expect("jobs table", differences_in_jobs(states, truth))
    published = job_states(compacted(bootstrap, JOB_STATES))
    expect("job-states", differences(published, states))
    sums, conclusions = window_sums(compacted(bootstrap, f"{app_id}-windows-changelog"))
    expect("windows", differences(sums, truth.windows))
    expect("conclusions", differences(conclusions, truth.conclusions))
    letters = {
        r.key: msgspec.json.decode(r.value)["reason"] for r in read_topic(bootstrap, DEAD_LETTERS)
    }
    expect("dead letters", differences(dict(Counter(letters.values())), truth.dead_letters))
    return {
        "jobs": len(states),
        "window cells": len(sums),
        "conclusion cells": len(conclusions),
        "dead letters": len(letters),
    }


def expect(what: str, wrong: list[str]) -> None:
    """Fail with the first of the differences."""
    if wrong:
        listed = "\n  ".join(wrong[:8])
        raise AssertionError(f"{what}: {len(wrong)} differences from the truth\n  {listed}")


def check_clickhouse(url: str, truth: Truth, bootstrap: str) -> dict[str, int]:
    """Compare what ClickHouse answers with the truth, and its raw events with the topics.

    Windows are compared through ``windows_merged``; a window shows up there at a tick, so wait
    for one before asking. Raises AssertionError naming the first differences.
    """
    client = Client.from_url(url)
    try:
        compared = check_jobs(client, truth)
        cells = client.execute(
            "SELECT fleet, family, size_s, start, count, sum_ms FROM windows_merged WHERE count > 0"
            f" AND NOT startsWith(family, '{STRANDED}')"
        )
        sums = {(f, fam, size, _ms(at)): (n, total) for f, fam, size, at, n, total in cells}
        expect("windows_merged", differences(sums, truth.windows))
        counted = client.execute(
            "SELECT fleet, conclusion, size_s, start, jobs FROM window_conclusions_merged "
            "WHERE jobs > 0"
        )
        conclusions = {(f, c, size, _ms(at)): n for f, c, size, at, n in counted}
        expect("window_conclusions_merged", differences(conclusions, truth.conclusions))
        raw = dict(client.execute("SELECT topic, count() FROM events_raw FINAL GROUP BY topic"))
        there = {
            topic: sum(1 for _ in read_topic(bootstrap, topic)) for topic in (WEBHOOKS, LIFECYCLE)
        }
        expect("events_raw", differences(raw, there))
    finally:
        client.disconnect()
    return {**compared, "windows_merged": len(sums)}


def check_jobs(client: Client, truth: Truth) -> dict[str, int]:
    """Compare jobs, their timings and steps in ClickHouse with the truth.

    Raises AssertionError naming the first differences.
    """
    rows = client.execute(
        "SELECT key, status, fleet, conclusion, queued_at, started_at, completed_at, "
        "abandoned_ms, copied, queue_ms, claim_to_start_ms, run_ms, total_ms, "
        "actor, trigger, pull_request, head_repo FROM jobs_latest"
    )
    jobs = {row[0]: row[1:4] + tuple(_ms(at) for at in row[4:7]) + row[7:] for row in rows}
    expect("doubled rows in jobs_latest", [str(len(rows))] if len(rows) != len(jobs) else [])
    want = {
        key: (
            job.status,
            job.fleet,
            job.conclusion or "",
            job.queued_at,
            job.started_at,
            job.completed_at,
            job.abandoned_ms,
            int(job.copied),
            *(
                value if isinstance(value := job.timings[family], int) else None
                for family in ("queue", "claim_to_start", "run", "total")
            ),
            *job.origin,
        )
        for key, job in truth.jobs.items()
    }
    expect("jobs_latest", differences(jobs, want))
    ended = {k: tuple(w[8:12]) for k, w in want.items() if w[0] == "completed"}
    timed = client.execute(
        "SELECT key, queue_ms, claim_to_start_ms, run_ms, total_ms FROM job_timings FINAL"
    )
    expect("job_timings", differences({row[0]: row[1:] for row in timed}, ended))
    # A copy's steps are not written, unless it was not known yet to be a copy.
    own = {key: job for key, job in truth.jobs.items() if not job.copied}
    found = client.execute(
        "SELECT key, number, name, conclusion, started_at, completed_at FROM job_steps FINAL"
    )
    steps = {row[:2]: (*row[2:4], _ms(row[4]), _ms(row[5])) for row in found if row[0] in own}
    taken = {
        (key, step[0]): (step[1], step[2] or "", *step[3:])
        for key, job in own.items()
        for step in job.steps
    }
    expect("job_steps", differences(steps, taken))
    return {"jobs_latest": len(jobs), "job_timings": len(timed), "job_steps": len(steps)}


def _ms(at: datetime | None) -> int | None:
    return None if at is None else round(at.replace(tzinfo=UTC).timestamp() * 1000)
