"""``topics``: the topics in Kafka."""

from __future__ import annotations

import click

from pipeline.commands.connections import (
    kafka_admin,
    kafka_options,
    specs,
    topics_plan,
)
from pipeline.commands.context import Context
from pipeline.commands.failure import FAILED, Failure
from pipeline.commands.output import print_json, print_table, say
from pipeline.text import duration
from topics.apply import TopicsError, apply


@click.group()
def topics() -> None:
    """The Kafka topics: create them, compare them with the settings."""


@topics.command("apply")
@click.option("--mend", is_flag=True, help="Also set settings that merely differ (retention).")
@click.pass_obj
def topics_apply(context: Context, mend: bool) -> None:
    """Create missing topics. Applying twice changes nothing; contradictions stop it."""
    settings = context.settings
    wanted = specs(settings)
    with kafka_admin(settings):
        pass
    try:
        report = apply(kafka_options(settings), wanted, mend=mend)
    except TopicsError as error:
        raise Failure(str(error)) from None
    for name in report.created:
        say(f"created    {name}")
    for each in report.mended:
        say(f"set        {each.topic}: {each.setting} = {each.wanted}")
    for each in report.drift:
        say(f"differs    {each} (set it with --mend)")
    for name in report.unknown:
        say(f"unchecked  {name}: the broker does not tell its settings")
    say(f"{len(report.created)} created, {len(report.unchanged)} as they should be")


@topics.command("show")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@click.pass_obj
def topics_show(context: Context, as_json: bool) -> None:
    """Show each topic and how it differs from what it should be. Exit code 1 if one does."""
    settings = context.settings
    found = topics_plan(settings)
    missing = {spec.name for spec in found.create}
    wrong: dict[str, list[str]] = {}
    for each in (*found.mismatches, *found.drift):
        wrong.setdefault(each.topic, []).append(
            f"{each.setting} is {each.found}, should be {each.wanted}"
        )
    rows = []
    for spec in specs(settings):
        if spec.name in missing:
            state = "missing"
        elif spec.name in wrong:
            state = "; ".join(wrong[spec.name])
        else:
            state = "ok, settings not told" if spec.name in found.unknown else "ok"
        kept = "compacted" if spec.retention_ms is None else duration(spec.retention_ms)
        rows.append((spec.name, spec.partitions, spec.cleanup, kept, state, spec.description))
    columns = ("topic", "partitions", "cleanup", "kept", "state", "what")
    if as_json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        print_table(columns, rows, right=(1,), whole=(0, 1, 4))
        if missing:
            say("\ncreate what is missing with `runnerstream topics apply`")
    if missing or found.mismatches:
        raise SystemExit(FAILED)
