"""``simulate`` and ``replay``: events for the configured Kafka."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
from kafka.errors import KafkaError

from pipeline.commands.common import USAGE, Context, Duration, Failure, say
from pipeline.commands.reach import broker_failure, kafka_admin, kafka_options
from pipeline.settings import Settings
from pipeline.simulate.produce import live, send_all, send_live
from pipeline.simulate.replay import ReplayError
from pipeline.simulate.replay import replay as post
from pipeline.text import duration
from topics.producer import DeliveryError, Producer

#: How long a record may take to be acknowledged before the command says that it was not. ms.
DELIVERY_MS: Final = 30_000


@contextmanager
def producer(settings: Settings) -> Iterator[Producer]:
    """A producer for the configured Kafka. Raises :class:`Failure`."""
    with kafka_admin(settings):
        pass
    options = kafka_options(settings)
    brokers = options.pop("bootstrap_servers")
    try:
        with Producer(
            brokers,
            client_id=f"{settings.app_id}-feed",
            delivery_timeout_ms=DELIVERY_MS,
            max_block_ms=DELIVERY_MS,
            **options,
        ) as made:
            yield made
    except DeliveryError as error:
        remedy = "are the topics there? `runnerstream topics show`"
        raise Failure(str(error), remedy) from None
    except KafkaError as error:
        raise broker_failure(settings, error) from None


@click.command()
@click.option("--rate", type=click.FloatRange(0.1, 1e6), default=300.0, show_default=True,
              help="Jobs a minute.")  # fmt: skip
@click.option("--duration", "lasts", type=Duration(), default="5m", show_default=True,
              help="For how long jobs arrive.")  # fmt: skip
@click.option("--seed", type=int, help="The same seed gives the same fleet.  [default: random]")
@click.option("--fast", is_flag=True, help="Send all at once instead of as time passes.")
@click.pass_obj
def simulate(context: Context, rate: float, lasts: float, seed: int | None, fast: bool) -> None:
    """Post the events of a simulated CI fleet, faults included, to the configured Kafka.

    Waits and runs take seconds, so that a minute shows everything. Ctrl-C ends it early.
    """
    if lasts <= 0:
        raise Failure("--duration must be more than 0", exit_code=USAGE)
    chosen = random.randrange(1_000_000) if seed is None else seed
    now_ms = int(time.time() * 1000)
    simulation = live(chosen, rate, lasts / 60, start_ms=now_ms)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    click.echo(
        f"{simulation.jobs} jobs over {duration(lasts * 1000)} to {context.settings.kafka} "
        f"(--seed {chosen})",
        err=True,
    )
    with producer(context.settings) as to:
        previous = signal.signal(signal.SIGINT, lambda *_: stop.set())
        try:
            if fast:
                # As if it had just happened: nothing in it is later than now.
                past = live(chosen, rate, lasts / 60, start_ms=now_ms - int(lasts * 1000))
                sent = send_all(past.records(), to)
            else:
                sent = send_live(simulation.records(), to, stop=stop.is_set)
        finally:
            signal.signal(signal.SIGINT, previous)
    click.echo(f"{sent.records:,} records, {sent.per_second:,.0f} a second", err=True)


@click.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
@click.pass_obj
def replay(context: Context, files: tuple[Path, ...]) -> None:
    """Post recorded webhook deliveries: .json holds one, .jsonl and .ndjson one a line.

    A delivery is GitHub's body, or an envelope with headers and payload. Replaying a file twice
    says nothing new.
    """
    with producer(context.settings) as to:
        try:
            number = post(files, to)
        except ReplayError as error:
            raise Failure(str(error), "what came before it has been posted") from None
    say(f"{number} deliveries posted")
