"""``jobs``: what a worker knows, on a terminal."""

from __future__ import annotations

from typing import Any, Final

import click

from pipeline.commands.connections import ask, web_url, worker_url
from pipeline.commands.context import Context, Duration
from pipeline.commands.failure import FAILED, Failure
from pipeline.commands.output import print_json, print_table, say
from pipeline.text import duration
from topics.models import Status

#: What a job's run says of it.
_OF_THE_RUN: Final = ("actor", "trigger", "pull_request", "head_repo")


@click.command()
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(["any", "live", *(status.value for status in Status)]),
    help="Only these; may be repeated.  [default: live]",
)
@click.option("--fleet", help="Only this fleet.")
@click.option("--repo", help="Only this repository (owner/name).")
@click.option("--actor", help="Only of runs that this one started.")
@click.option("--trigger", help="Only of runs that this event started: push, pull_request.")
@click.option("--age", type=Duration(), help="At least this long in their state: 90s, 15m, 2h.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@click.option("--url", help="A worker.  [default: the one of the settings]")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@click.pass_obj
def jobs(
    context: Context,
    states: tuple[str, ...],
    fleet: str | None,
    repo: str | None,
    actor: str | None,
    trigger: str | None,
    age: float | None,
    limit: int,
    url: str | None,
    as_json: bool,
) -> None:
    """Live jobs, the longest in their state first, as a worker knows them.

    On a narrow terminal names are cut, keys never; elsewhere, and with --json, nothing is.
    Exit code 1 when the answer is incomplete, because a worker of the group did not answer.
    """
    base = worker_url(context.settings) if url is None else web_url(url)
    query: dict[str, Any] = {
        "state": ",".join(states), "fleet": fleet, "repo": repo,
        "actor": actor, "trigger": trigger, "age": age,
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    cursor = None
    while True:
        page = ask(
            base, "/jobs", {**query, "limit": min(1_000, limit - len(rows)), "cursor": cursor}
        )
        if page.status != 200:
            raise Failure(f"{base} answered {page.status}: {page.get('error', page)}")
        rows += page["jobs"]
        cursor = page["next"]
        if cursor is None or len(rows) >= limit or page["incomplete"]:
            break
    if as_json:
        print_json({**page, "jobs": rows})
    else:
        # The key comes first and is never cut: it is what one copies.
        columns = (
            "key", "state", "for", "job", "workflow", "repository", "fleet", "runner",
            "actor", "trigger", "pull request", "head repository",
        )  # fmt: skip
        print_table(
            columns,
            (
                (
                    row["key"],
                    f"{row['status']} ({row['conclusion']})"
                    if row["conclusion"]
                    else row["status"],
                    duration(row["age_ms"]) if row["age_ms"] is not None else "unknown",
                    row["name"] or None,
                    row["workflow"] or None,
                    row["repo"] or None,
                    row["fleet"],
                    row["runner"] or None,
                    # A worker of an earlier release says nothing of these.
                    *(row.get(name) or None for name in _OF_THE_RUN),
                )
                for row in rows
            ),
            right=(2, 10),
            whole=(0, 1, 2),
        )
        more = f" of {page['matched']:,}" if page["matched"] > len(rows) else ""
        say(f"\n{len(rows):,}{more} jobs")
    for gap in page["incomplete"]:
        click.echo(f"incomplete: {gap['reason']} (partitions {gap['partitions']})", err=True)
    if page["incomplete"]:
        raise SystemExit(FAILED)
