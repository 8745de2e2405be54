"""``simulate``, ``replay`` and ``post``: events for the configured Kafka."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

import click
from kafka.errors import KafkaError

from pipeline.commands.common import USAGE, Context, Duration, Failure, say
from pipeline.commands.reach import broker_failure, kafka_admin, kafka_options
from pipeline.providers.sending import Headers, Signer
from pipeline.replay import ReplayError
from pipeline.replay import replay as post
from pipeline.settings import Settings
from pipeline.simulate.produce import live, send_all, send_live
from pipeline.text import duration
from topics.catalogue import LIFECYCLE, WEBHOOKS
from topics.models import DELIVERY, Delivery, Reason, Unreadable
from topics.models import LIFECYCLE as LIFECYCLE_EVENT
from topics.producer import DeliveryError, Producer
from topics.reading import read

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


def signer(settings: Settings) -> Signer:
    """What makes webhooks that workers with these settings believe."""
    return Signer(settings.webhook_secrets(), settings.trust_envelopes)


class Signing:
    """A producer whose webhooks are signed."""

    def __init__(self, to: Producer, signer: Signer) -> None:
        self._to = to
        self._signer = signer

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()
    ) -> None:
        """As :meth:`topics.producer.Producer.send`."""
        if topic == WEBHOOKS and value is not None:
            headers = self._signer.signed(headers, value)
        self._to.send(topic, key, value, headers)


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


@click.command("post")
@click.argument("files", nargs=-1, type=click.File("rb"))
@click.pass_obj
def post_records(context: Context, files: tuple[BinaryIO, ...]) -> None:
    """Post records as docs/producers.md describes them, from FILES or standard input.

    JSON objects one after another, or an array of them: deliveries go to runners.webhooks in raw
    form, lifecycle events to runners.lifecycle, each under its key. All are checked before the
    first is posted, so that a wrong one posts nothing. Where secrets are set, deliveries without a
    signature are signed with the first.
    """
    found: list[_Record] = []
    for file in files or (click.get_binary_stream("stdin"),):
        found += _records(file, signer(context.settings))
    with producer(context.settings) as to:
        for topic, key, value, headers in found:
            to.send(topic, key, value, headers)
    counts = Counter(topic for topic, *_ in found)
    for topic, number in counts.most_common():
        say(f"{number} record{'' if number == 1 else 's'} posted to {topic}")


#: Topic, key, value and headers.
_Record = tuple[str, bytes, bytes, Headers]


def _records(file: BinaryIO, to: Signer) -> Iterator[_Record]:
    """Each record in a file. Raises :class:`Failure` for what is none."""
    name = getattr(file, "name", None)
    name = name if isinstance(name, str) and name != "<stdin>" else "standard input"
    try:
        text = file.read().decode("utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        what = "is not UTF-8 text" if isinstance(error, ValueError) else error.strerror
        raise Failure(f"{name}: {what}", exit_code=USAGE) from None
    decoder = json.JSONDecoder()
    at = 0
    empty = True
    while (at := len(text) - len(text[at:].lstrip())) < len(text):
        line = text.count("\n", 0, at) + 1
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            inner = error.lineno if isinstance(error, json.JSONDecodeError) else line
            what = error.msg if isinstance(error, json.JSONDecodeError) else "too deep"
            raise Failure(f"{name}, line {inner}: not JSON: {what}", exit_code=USAGE) from None
        for record in value if isinstance(value, list) else [value]:
            empty = False
            yield _record(record, f"{name}, line {line}", to)
    if empty:
        raise Failure(
            f"{name} holds no record", "write a JSON object, see docs/producers.md", USAGE
        )


def _record(value: Any, where: str, to: Signer) -> _Record:
    raw = json.dumps(value).encode()
    delivered = isinstance(value, dict) and value.get("kind") in Delivery.KINDS
    topic = WEBHOOKS if delivered else LIFECYCLE
    adapter: Any = DELIVERY if delivered else LIFECYCLE_EVENT
    try:
        if not isinstance(value, dict):
            raise Unreadable(Reason.BAD_ENVELOPE, "a record is a JSON object")
        record: Any = read(adapter, raw)
    except Unreadable as why:
        raise Failure(
            f"{where}: {why.reason.value}: {why.error}", "nothing was posted", USAGE
        ) from None
    if isinstance(record, Delivery):
        return topic, *to.record(record, raw)
    return topic, record.key.encode(), raw, ()
