"""``local``: a broker and a ClickHouse on this machine."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import click

from pipeline.commands.context import Context
from pipeline.commands.failure import FAILED, Failure
from pipeline.commands.output import print_json, say
from pipeline.local import LocalError, StackStatus, default_data_dir, down, status, up
from pipeline.local.stack import CLICKHOUSE_HTTP_PORT, CLICKHOUSE_PORT, KAFKA_PORT
from pipeline.text import duration


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
