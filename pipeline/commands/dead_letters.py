"""``dead-letters``: records that could not be handled; look at them, replay them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import click
from kafka import TopicPartition
from kafka.errors import KafkaError

from pipeline.commands.connections import broker_failure, kafka_admin, kafka_options, specs
from pipeline.commands.context import Context, Duration
from pipeline.commands.failure import Failure
from pipeline.commands.kafka_producer import producer
from pipeline.commands.output import OutputClosed, print_json, print_table, say
from pipeline.settings import Settings
from pipeline.text import duration
from sinks.consumer import make_consumer
from topics.bridge import RECEIVED_AT, RELAY
from topics.catalogue import DEAD_LETTERS, MAX_DEAD_LETTER_BYTES
from topics.dead_letters import relay_of
from topics.models import DEAD_LETTER, DeadLetter, Reason, Unreadable
from topics.reading import read

#: How long the broker may be silent before we say that it does not answer. Seconds.
_SILENCE_S: Final = 15.0


class Filters:
    """Which letters are meant."""

    def __init__(
        self,
        reasons: tuple[str, ...],
        stages: tuple[str, ...],
        topics: tuple[str, ...],
        since: float | None,
    ) -> None:
        self.reasons = frozenset(reasons)
        self.stages = frozenset(stages)
        self.topics = frozenset(topics)
        self.since_ms = None if since is None else int((time.time() - since) * 1000)

    def take(self, letter: DeadLetter) -> bool:
        """Whether a letter is meant."""
        return (
            (not self.reasons or letter.reason.value in self.reasons)
            and (not self.stages or letter.stage in self.stages)
            and (not self.topics or letter.topic in self.topics)
            and (self.since_ms is None or letter.received_at >= self.since_ms)
        )


def _filters(command: Any) -> Any:
    """The options that choose letters."""
    for option in (
        click.option("--since", type=Duration(), help="Refused within this time: 30m, 2h, 7d."),
        click.option("--topic", "topics", multiple=True, help="Of records from this topic."),
        click.option(
            "--stage",
            "stages",
            multiple=True,
            help="Refused by normalise, fold, sink, executor or relay.",
        ),
        click.option(
            "--reason",
            "reasons",
            multiple=True,
            type=click.Choice([reason.value for reason in Reason]),
            help="Refused for this; may be repeated.",
        ),
    ):
        command = option(command)
    return command


def letters(settings: Settings) -> Iterator[DeadLetter]:
    """Every letter in the topic now, each once, in the order of its partitions. Reads without a
    group, so it moves nobody's offsets."""
    with kafka_admin(settings):
        pass
    consumer: Any = None
    try:
        consumer = make_consumer(
            {
                **kafka_options(settings),
                "group_id": None,
                "enable_auto_commit": False,
                "auto_offset_reset": "earliest",
                # A letter that was taken back is repeated with what it belongs to.
                "isolation_level": "read_committed",
                "max_partition_fetch_bytes": MAX_DEAD_LETTER_BYTES,
            }
        )
        known = consumer.partitions_for_topic(DEAD_LETTERS)
        if not known:
            raise Failure(
                f"topic {DEAD_LETTERS} does not exist", "create it with `runnerstream topics apply`"
            )
        where = [TopicPartition(DEAD_LETTERS, p) for p in sorted(known)]
        consumer.assign(where)
        ends = consumer.end_offsets(where)
        consumer.seek_to_beginning(*where)
        seen: set[str] = set()
        heard = time.monotonic()
        while any(consumer.position(tp) < ends[tp] for tp in where):
            fetched = consumer.poll(timeout_ms=500)
            if fetched:
                heard = time.monotonic()
            elif time.monotonic() - heard > _SILENCE_S:
                raise Failure(f"the broker sends nothing of {DEAD_LETTERS} for {_SILENCE_S:g} s")
            for records in fetched.values():
                for record in records:
                    try:
                        letter: DeadLetter = read(DEAD_LETTER, record.value)
                    except Unreadable as why:
                        at = f"{record.topic}:{record.partition}:{record.offset}"
                        click.echo(f"unreadable letter {at}: {why.error}", err=True)
                        continue
                    # A batch that was repeated after a crash writes its letters again.
                    if letter.id not in seen:
                        seen.add(letter.id)
                        yield letter
    except KafkaError as error:
        raise broker_failure(settings, error) from None
    finally:
        if consumer is not None:
            consumer.close()


@click.group("dead-letters")
def dead_letters() -> None:
    """Records that could not be handled: look at them, and replay them when the cause is gone."""


@dead_letters.command("list")
@_filters
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True,
              help="Most letters shown; the newest.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@click.pass_obj
def list_letters(
    context: Context,
    reasons: tuple[str, ...],
    stages: tuple[str, ...],
    topics: tuple[str, ...],
    since: float | None,
    limit: int,
    as_json: bool,
) -> None:
    """List letters, newest first, with how many there are of each reason."""
    wanted = Filters(reasons, stages, topics, since)
    # Without the records themselves: a letter may carry 32 MB.
    found = [
        letter.model_copy(update={"record_value": None})
        for letter in letters(context.settings)
        if wanted.take(letter)
    ]
    found.sort(key=lambda letter: (-letter.received_at, letter.id))
    counts = Counter((letter.stage, letter.reason.value) for letter in found)
    if as_json:
        print_json(
            {
                "total": len(found),
                "counts": [
                    {"stage": s, "reason": r, "letters": n} for (s, r), n in counts.most_common()
                ],
                "letters": [
                    letter.model_dump(mode="json", exclude={"record_value", "record_key"})
                    for letter in found[:limit]
                ],
            }
        )
        return
    if not found:
        say("no dead letters match" if _any(wanted) else "no dead letters")
        return
    now = int(time.time() * 1000)
    print_table(
        ("letter", "stage", "reason", "age", "what was wrong"),
        (
            (
                letter.id,
                letter.stage,
                letter.reason.value,
                duration(max(0, now - letter.received_at)),
                letter.error[:160],
            )
            for letter in found[:limit]
        ),
        right=(3,),
        whole=(0, 2, 3),
    )
    told = ", ".join(f"{n} {reason} ({stage})" for (stage, reason), n in counts.most_common())
    say(f"\n{len(found)} letters: {told}")


@dead_letters.command("show")
@click.argument("letter_id", metavar="TOPIC:PARTITION:OFFSET")
@click.option("--raw", is_flag=True, help="Only the record's bytes, as they were.")
@click.pass_obj
def show_letter(context: Context, letter_id: str, raw: bool) -> None:
    """Show one letter and its record whole."""
    letter = next((each for each in letters(context.settings) if each.id == letter_id), None)
    if letter is None:
        raise Failure(
            f"there is no dead letter {letter_id}", "see `runnerstream dead-letters list`"
        )
    value = letter.record_value
    if raw:
        try:
            stream = click.get_binary_stream("stdout")
            stream.write(value or b"")
            stream.flush()
        except BrokenPipeError:
            raise OutputClosed from None
        return
    told = letter.model_dump(mode="json", exclude={"record_value", "record_key", "kind"})
    told["record_key"] = _text(letter.record_key)
    told["record_value"] = _text(value)
    print_json(told)


@dead_letters.command("replay")
@_filters
@click.option("--id", "ids", multiple=True, help="Only these letters; may be repeated.")
@click.option("--all", "everything", is_flag=True, help="Without any filter: replay all letters.")
@click.option(
    "--compacted",
    is_flag=True,
    help="Also to compacted topics, where an old record would stand for a newer one of its key.",
)
@click.option("--dry-run", is_flag=True, help="Count, post nothing.")
@click.pass_obj
def replay_letters(
    context: Context,
    reasons: tuple[str, ...],
    stages: tuple[str, ...],
    topics: tuple[str, ...],
    since: float | None,
    ids: tuple[str, ...],
    everything: bool,
    compacted: bool,
    dry_run: bool,
) -> None:
    """Post the records of letters back to where they came from, byte for byte, under their keys and
    with their headers.

    What a relay could not pass on goes to that relay alone.

    Each letter is replayed once per run. A record whose cause is not mended comes back as a new
    letter; one that was understood meanwhile changes nothing, because its facts are known.
    """
    wanted = Filters(reasons, stages, topics, since)
    if not (_any(wanted) or ids or everything):
        raise click.UsageError("choose letters with --reason, --stage, --topic, --since or --id, "
                               "or say --all")  # fmt: skip
    chosen = frozenset(ids)
    keep_off = frozenset() if compacted else _compacted(context.settings)
    counts: Counter[str] = Counter()
    held: Counter[str] = Counter()
    without: list[str] = []
    # The topic is read to its end as it is now, so what comes back is not replayed again.
    with producer(context.settings) as to:
        for letter in letters(context.settings):
            if not wanted.take(letter) or (chosen and letter.id not in chosen):
                continue
            if letter.record_value is None and letter.record_key is None:
                # Too large to be carried, or a tombstone: see the letter's error.
                without.append(letter.id)
                continue
            if letter.topic in keep_off:
                held[letter.topic] += 1
                continue
            counts[letter.topic] += 1
            if not dry_run:
                to.send(letter.topic, letter.record_key, letter.record_value, _headers(letter))
    verb = "would be replayed" if dry_run else "replayed"
    for topic, number in counts.most_common():
        say(f"{number:>7,}  {verb} to {topic}")
    if not (counts or held or without):
        say("no letter matches")
    for topic, number in held.most_common():
        click.echo(
            f"not replayed: {number:,} to {topic}, which is compacted: an old record would stand "
            "for a newer one of its key (--compacted does it all the same)",
            err=True,
        )
    for missing in without:
        click.echo(f"not replayed: {missing} does not carry its record", err=True)


def _headers(letter: DeadLetter) -> list[tuple[str, bytes]]:
    """The record's headers; where there are any, with the time of its first arrival.

    A webhook in raw form says only by the record's time when it came. What a relay could not pass
    on is for that relay: other relays leave it.
    """
    headers = letter.record_headers
    if headers:
        headers = {RECEIVED_AT: str(letter.occurred_at)} | headers
    if relay_of(letter):
        headers = headers | {RELAY: relay_of(letter)}
    return [(name, value.encode()) for name, value in headers.items()]


def _compacted(settings: Settings) -> frozenset[str]:
    """Topics of which only the latest record of a key is kept."""
    return frozenset(spec.name for spec in specs(settings) if "compact" in spec.cleanup)


def _any(wanted: Filters) -> bool:
    return bool(wanted.reasons or wanted.stages or wanted.topics or wanted.since_ms is not None)


def _text(value: bytes | None) -> str | None:
    """Bytes as text where they are text, else in a form that shows every byte."""
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return repr(value)
