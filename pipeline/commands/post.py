"""``post``: records of producers of your own for the configured Kafka."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

import click

from pipeline.commands.context import Context
from pipeline.commands.failure import USAGE, Failure
from pipeline.commands.kafka_producer import producer, signer
from pipeline.commands.output import say
from pipeline.providers.sending import Headers, Signer
from topics.catalogue import BY_NAME, EVENTS, LIFECYCLE, WEBHOOKS
from topics.events import MODELS, Event, key_of
from topics.models import Delivery, Reason, Unreadable
from topics.reading import read


@click.command()
@click.argument("files", nargs=-1, type=click.File("rb"))
@click.pass_obj
def post(context: Context, files: tuple[BinaryIO, ...]) -> None:
    """Post records as docs/producers.md describes them, from FILES or standard input.

    JSON objects one after another, or an array of them: deliveries go to runners.webhooks in raw
    form, lifecycle events to runners.lifecycle, telemetry to runners.events, each under its key.
    All are checked before the first is posted, so that a wrong one posts nothing. Where secrets are
    set, deliveries without a signature are signed with the first.
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
    kind = value.get("kind") if isinstance(value, dict) else None
    topic = LIFECYCLE
    if isinstance(kind, str) and kind in Delivery.KINDS:
        topic = WEBHOOKS
    elif isinstance(kind, str) and kind in MODELS:
        topic = EVENTS
    try:
        if not isinstance(value, dict):
            raise Unreadable(Reason.BAD_ENVELOPE, "a record is a JSON object")
        record: Any = read(BY_NAME[topic].adapter, raw)
    except Unreadable as why:
        raise Failure(
            f"{where}: {why.reason.value}: {why.error}", "nothing was posted", USAGE
        ) from None
    if isinstance(record, Delivery):
        return topic, *to.record(record, raw)
    key = key_of(record) if isinstance(record, Event) else record.key
    return topic, key.encode(), raw, ()
