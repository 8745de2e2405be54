"""``replay``: recorded webhook deliveries for the configured Kafka."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands.context import Context
from pipeline.commands.failure import Failure
from pipeline.commands.kafka_producer import producer, signer
from pipeline.commands.output import say
from pipeline.replay import ReplayError
from pipeline.replay import replay as post


@click.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
@click.pass_obj
def replay(context: Context, files: tuple[Path, ...]) -> None:
    """Post recorded webhook deliveries: .json holds one or an array, .jsonl and .ndjson one a line.

    A delivery is GitHub's body, or an envelope with headers and payload, or a job as GitHub's REST
    API returns it. Replaying a file twice says nothing new. Where secrets are set, what has no
    signature is signed with the first.
    """
    with producer(context.settings) as to:
        try:
            number = post(files, to, signer=signer(context.settings))
        except ReplayError as error:
            raise Failure(str(error), "what came before it has been posted") from None
    say(f"{number} deliveries posted")
