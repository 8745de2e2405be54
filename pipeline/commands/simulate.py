"""``simulate``: the events of a simulated fleet for the configured Kafka."""

from __future__ import annotations

import random
import signal
import threading
import time

import click

from pipeline.commands.context import Context, Duration
from pipeline.commands.failure import USAGE, Failure
from pipeline.commands.kafka_producer import Signing, producer, signer
from pipeline.simulate.produce import live, send_all, send_live
from pipeline.text import duration


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

    Waits and runs take seconds, so that a minute shows everything. Ctrl-C ends it early. Where
    secrets are set, webhooks are signed with the first.
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
        signing = Signing(to, signer(context.settings))
        previous = signal.signal(signal.SIGINT, lambda *_: stop.set())
        try:
            if fast:
                # As if it had just happened: nothing in it is later than now.
                past = live(chosen, rate, lasts / 60, start_ms=now_ms - int(lasts * 1000))
                sent = send_all(past.records(), signing)
            else:
                sent = send_live(simulation.records(), signing, stop=stop.is_set)
        finally:
            signal.signal(signal.SIGINT, previous)
    click.echo(f"{sent.records:,} records, {sent.per_second:,.0f} a second", err=True)
