"""``topics``, ``schema`` and ``local``: what must stand before a worker runs."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import click
from clickhouse_driver.errors import Error as ClickHouseError
from kafka.errors import KafkaError

from pipeline.commands.common import (
    FAILED,
    USAGE,
    Context,
    Failure,
    print_json,
    print_table,
    say,
)
from pipeline.commands.reach import (
    bounded,
    clickhouse,
    clickhouse_failure,
    clickhouse_url,
    kafka_admin,
    kafka_options,
    require_clickhouse,
    specs,
    topics_plan,
)
from pipeline.local import LocalError, StackStatus, default_data_dir, down, status, up
from pipeline.local.stack import CLICKHOUSE_HTTP_PORT, CLICKHOUSE_PORT, KAFKA_PORT
from pipeline.text import duration
from sinks import schema as tables
from sinks.refill import RefillError, refill
from sinks.rows import TABLES
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


@click.group()
def schema() -> None:
    """The tables in ClickHouse: create and upgrade them, show what is applied."""


@schema.command("apply")
@click.pass_obj
def schema_apply(context: Context) -> None:
    """Create the database, apply missing migrations, and make again what was dropped.

    Applying twice changes nothing.
    """
    settings = context.settings
    url = clickhouse_url(settings)
    require_clickhouse(settings)
    try:
        report = tables.apply(bounded(url))
    except tables.SchemaError as error:
        raise Failure(str(error)) from None
    except (ClickHouseError, OSError, EOFError, ValueError) as error:
        raise clickhouse_failure(settings, error) from None
    for name in report.applied:
        say(f"applied  {name}")
    for name in report.mended:
        say(f"made     {name}, which was gone")
    say(
        f"database {report.database}: {len(report.applied)} migrations applied, "
        f"{len(report.already)} were there"
    )
    ours = {table.name for table in TABLES}
    lost = dict.fromkeys(name.partition(".")[0] for name in report.mended)
    lost = dict.fromkeys(name for name in lost if name in ours)
    if lost:
        say(f"fill from the log what was lost: runnerstream schema refill {' '.join(lost)}")


@schema.command("refill")
@click.argument("names", nargs=-1, required=True, metavar="TABLE...")
@click.pass_obj
def schema_refill(context: Context, names: tuple[str, ...]) -> None:
    """Fill tables from what the topics still hold, after they were dropped and made again.

    May run while sinks run, and twice: rows that are there already are replaced by themselves.
    """
    settings = context.settings
    url = clickhouse_url(settings)
    unknown = sorted(set(names) - {table.name for table in TABLES})
    if unknown:
        raise Failure(
            f"no table of the sink: {', '.join(unknown)}",
            f"one of {', '.join(table.name for table in TABLES)}",
            USAGE,
        )
    require_clickhouse(settings)
    try:
        gone = sorted(set(names) & set(tables.absent(bounded(url))))
    except (ClickHouseError, OSError, EOFError, ValueError) as error:
        raise clickhouse_failure(settings, error) from None
    if gone:
        raise Failure(f"missing: {', '.join(gone)}", "make it with `runnerstream schema apply`")
    with kafka_admin(settings):
        pass
    told = time.monotonic()

    def progress(done: int, of: int) -> None:
        nonlocal told
        if time.monotonic() - told > 5:
            told = time.monotonic()
            click.echo(f"{done:,} of {of:,} offsets", err=True)

    try:
        filled = refill(settings.kafka_options(), url, names, progress)
    except (RefillError, KafkaError) as error:
        raise Failure(
            f"not filled to the end: {error}", "begin it again: nothing is lost"
        ) from None
    for name, number in filled.rows.items():
        say(f"filled   {name}: {number:,} rows")
    say(f"{filled.records:,} records read, {filled.passed_over:,} of them gave no row")


@schema.command("show")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@click.pass_obj
def schema_show(context: Context, as_json: bool) -> None:
    """Show migrations and tables. Exit code 1 while a migration or a table is missing."""
    settings = context.settings
    url = clickhouse_url(settings)
    require_clickhouse(settings)
    try:
        pending = {migration.version for migration in tables.pending(bounded(url))}
        gone: tuple[str, ...] = ()
        if len(pending) < len(tables.migrations()):
            gone = tables.absent(bounded(url))
    except tables.SchemaError as error:
        raise Failure(str(error)) from None
    except (ClickHouseError, OSError, EOFError, ValueError) as error:
        raise clickhouse_failure(settings, error) from None
    migrations = [
        (f"{m.version:04d}_{m.name}", "missing" if m.version in pending else "applied")
        for m in tables.migrations()
    ]
    sizes = []
    with clickhouse(settings) as client:
        sizes = client.execute(
            "SELECT name, engine, ifNull(total_rows, 0), ifNull(total_bytes, 0), comment "
            "FROM system.tables WHERE database = %(database)s ORDER BY engine = 'View', name",
            {"database": tables.database_of(url)},
        )
    if as_json:
        print_json(
            {
                "migrations": [{"name": name, "state": state} for name, state in migrations],
                "tables": [
                    {"name": n, "engine": e, "rows": r, "bytes": b, "comment": c}
                    for n, e, r, b, c in sizes
                ],
                "missing": list(gone),
            }
        )
    else:
        print_table(("migration", "state"), migrations)
        if sizes:
            rows = [
                (n, e, "" if e == "View" else f"{r:,}", "" if e == "View" else _size(b))
                for n, e, r, b, _ in sizes
            ]
            say()
            print_table(("table", "engine", "rows", "on disk"), rows, right=(2, 3))
        if gone:
            say(f"\nmissing: {', '.join(gone)}")
        if pending or gone:
            say("\napply what is missing with `runnerstream schema apply`")
    if pending or gone:
        raise SystemExit(FAILED)


def _size(number: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number //= 1024
    return f"{number:,} GiB"


@click.group()
def local() -> None:
    """A broker and a ClickHouse on this machine, without Docker."""


_directory = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=default_data_dir,
    help="Where it keeps its files.  [default: the user's state directory]",
)


@local.command("up")
@_directory
@click.option("--kafka-port", default=KAFKA_PORT, show_default=True, type=click.IntRange(0, 65535))
@click.option(
    "--clickhouse-port", default=CLICKHOUSE_PORT, show_default=True, type=click.IntRange(0, 65535)
)
@click.option(
    "--clickhouse-http-port",
    default=CLICKHOUSE_HTTP_PORT,
    show_default=True,
    type=click.IntRange(0, 65535),
)
@click.option("--discard", is_flag=True, help="Delete ClickHouse's data when it goes down.")
@click.pass_obj
def local_up(
    context: Context,
    directory: Path,
    kafka_port: int,
    clickhouse_port: int,
    clickhouse_http_port: int,
    discard: bool,
) -> None:
    """Start both in the background, and print what to set to use them.

    The broker keeps its records in memory: they are gone after `local down`.
    """
    try:
        found = up(
            directory,
            kafka_port,
            clickhouse_port,
            clickhouse_http_port,
            keep_data=not discard,
            progress=lambda line: click.echo(line, err=True),
        )
    except LocalError as error:
        raise Failure(str(error)) from None
    env_file = _write_env(directory, found)
    say(f"\nexport RUNNERSTREAM_CONFIG={env_file}")
    click.echo(
        "\nThat line makes other commands use them: next `runnerstream topics apply`, "
        "`runnerstream schema apply`, `runnerstream worker`.",
        err=True,
    )


@local.command("down")
@_directory
def local_down(directory: Path) -> None:
    """Stop both. What the broker held is gone; ClickHouse's data stay unless --discard."""
    try:
        ended = down(directory)
    except LocalError as error:
        raise Failure(str(error)) from None
    say("stopped" if ended else "nothing was running")


@local.command("status")
@_directory
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
def local_status(directory: Path, as_json: bool) -> None:
    """Whether both run. Exit code 1 when not."""
    found = status(directory)
    told = {
        name: value
        for name, value in dataclasses.asdict(found).items()
        # These hold passwords.
        if name not in ("clickhouse_url", "clickhouse_reader_url")
    }
    if as_json:
        print_json(told)
    elif found.running:
        up_for = duration((time.time() - found.started_at) * 1000)
        say(f"running for {up_for} (process {found.pid}) in {found.data_dir}")
        say(f"  Kafka       {found.kafka_bootstrap}")
        say(f"  ClickHouse  {found.clickhouse_http_url} (HTTP)")
        say(f"  settings    {directory / 'env'} (with the password; mode 0600)")
    else:
        say(f"nothing runs in {found.data_dir}; start it with `runnerstream local up`")
    if not found.running:
        raise SystemExit(FAILED)


def _write_env(directory: Path, found: StackStatus) -> Path:
    """A configuration file for the running stack. It holds a password: nobody else may read it."""
    file = directory / "env"
    file.touch(mode=0o600)
    file.chmod(0o600)
    file.write_text(
        f"RUNNERSTREAM_KAFKA={found.kafka_bootstrap}\n"
        f"RUNNERSTREAM_CLICKHOUSE={found.clickhouse_url}\n"
        # The broker waits for half of it before a group begins.
        "RUNNERSTREAM_REBALANCE_TIMEOUT=6\n"
    )
    return file.resolve()
