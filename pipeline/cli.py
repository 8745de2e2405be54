"""The command ``runnerstream``. ``python -m pipeline.cli`` is the same.

Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 something cannot be reached.
"""

from __future__ import annotations

import logging
from pathlib import Path

import click

from pipeline.commands.common import Context
from pipeline.commands.demo import demo
from pipeline.commands.doctor import doctor
from pipeline.commands.feed import replay, simulate
from pipeline.commands.letters import dead_letters
from pipeline.commands.look import jobs, sql
from pipeline.commands.setup import local, schema, topics
from pipeline.commands.worker import worker
from pipeline.text import version


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version(), prog_name="runnerstream", message="%(prog)s %(version)s")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="File of RUNNERSTREAM_NAME=value lines. The environment wins over it.",
)
@click.option("-v", "--verbose", count=True, help="Say more; twice for everything.")
@click.pass_context
def main(ctx: click.Context, config: Path | None, verbose: int) -> None:
    """Where every CI job is, how long it waited, and which one is stuck.

    Settings are environment variables RUNNERSTREAM_*; `runnerstream demo` needs none.
    """
    ctx.obj = Context(config, verbose)
    # These print tracebacks and warnings of their own for what commands tell in a sentence.
    for name in ("kafka", "clickhouse_driver"):
        logging.getLogger(name).setLevel(logging.DEBUG if verbose > 1 else logging.CRITICAL)


for _command in (
    demo,
    worker,
    topics,
    schema,
    simulate,
    replay,
    local,
    sql,
    jobs,
    dead_letters,
    doctor,
):
    main.add_command(_command)

if __name__ == "__main__":
    main(prog_name="runnerstream")
