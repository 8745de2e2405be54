"""Telemetry as it is said: made, given ids, freed of secrets, read by the pipeline."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.agents.normalise import telemetry_record
from pipeline.commands.event_fields import KINDS, hints_of, is_required, typed, words
from topics.batching import Drop
from topics.catalogue import BY_NAME, EVENTS, LIFECYCLE, TELEMETRY
from topics.events import FAMILIES, MODELS, TELEMETRY_RECORD, Event, family_of, key_of, kinds
from topics.keys import GITHUB_HOST
from topics.masking import Masker
from topics.models import Delivery, LifecycleEvent, LifecycleKind, Tick, Unreadable
from topics.producer import addressed
from topics.said import URGENT, Maker, masked, sayable

AT = 1_790_000_000_000
#: A value for each sort of field, and the same as a shell would say it.
VALUES: dict[str, tuple[Any, str]] = {
    "ms": (41, "41"),
    "number": (3, "3"),
    "name": ("n1", "n1"),
    "word": ("w", "w"),
    "text": ("t", "t"),
    "time in ms": (AT, str(AT)),
    "true or false": (True, "true"),
    "names": (["linux", "x64"], "linux,x64"),
    "numbers by type": ({"close": 2}, '{"close": 2}'),
    "[numbers, numbers, number] by poll | job | log | state": (
        {"poll": [[0.5], [1, 2], 3.5]}, '{"poll": [[0.5], [1, 2], 3.5]}',
    ),
}  # fmt: skip
#: What the pipeline or the emitter fills in.
FILLED = {"id", "source", "occurred_at", "trace"}


def sample(kind: str) -> dict[str, tuple[Any, str]]:
    """A value for every field of a kind."""
    found = {}
    for name, hint in hints_of(kind).items():
        if name in FILLED:
            continue
        said = words(hint)
        if said.startswith("number by "):
            first = said.removeprefix("number by ").partition(" ")[0]
            found[name] = ({first: 2}, json.dumps({first: 2}))
        elif " | " in said and said not in VALUES:
            first = said.partition(" ")[0]
            found[name] = (first, first)
        else:
            found[name] = VALUES[said]
    return found


def maker(*secrets: str, **always: str) -> Maker:
    known = {"source": "host-1", "fleet": "linux", "provider": "github", "host": GITHUB_HOST}
    return Maker(known | always, Masker(secrets))


@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_is_said_sent_and_understood(kind: str) -> None:
    said = {name: value for name, (value, _) in sample(kind).items()}
    event = maker().event(kind, said)
    assert isinstance(event, Event)
    assert isinstance(event, MODELS[kind])
    for name, value in said.items():
        assert json.loads(event.model_dump_json())[name] == value
    topic, key, value = addressed(event)
    output, notes = telemetry_record(value)
    assert (topic, output.topic, notes) == (EVENTS, TELEMETRY, [])
    assert output.key == key == key_of(event).encode()
    family = next(name for name, models in FAMILIES.items() if MODELS[kind] in models)
    assert key.decode() == f"{family}|{event.fleet}|{event.subject}"
    assert output.value is not None
    there = TELEMETRY_RECORD.validate_json(output.value)
    assert there == event.model_copy(update={"key": key.decode()})


@pytest.mark.parametrize("kind", MODELS)
def test_no_more_is_needed_than_what_is_required(kind: str) -> None:
    said = {n: value for n, (value, _) in sample(kind).items() if is_required(kind, n)}
    said.pop("fleet")
    event = maker().event(kind, said)
    assert (event.fleet, event.source) == ("linux", "host-1")
    assert event.occurred_at == event.received_at > AT
    for name in said:
        with pytest.raises(ValueError, match=name):
            maker().event(kind, {**said, name: None})


@pytest.mark.parametrize("kind", MODELS)
def test_text_of_a_shell_becomes_values(kind: str) -> None:
    for name, (value, text) in sample(kind).items():
        assert typed(kind, name, text) == value
        # A variable of a script that is empty: not known.
        assert typed(kind, name, "") in (None, "")
    with pytest.raises(ValueError, match=f"{kind} has no nonsense; it has .*fleet"):
        typed(kind, "nonsense", "1")


def test_what_no_json_is_stays_for_the_model_to_refuse() -> None:
    for field, text in (("idle", "many"), ("idle", "[" * 100_000), ("idle", "1.5")):
        with pytest.raises(ValueError, match="idle"):
            maker().event("pool.sample", {field: typed("pool.sample", field, text)})
    assert typed("job.started", "runner", "17") == "17"


def test_kinds_are_told_apart_by_topic() -> None:
    assert not set(MODELS) & ({kind.value for kind in LifecycleKind} | set(Delivery.KINDS))
    assert set(KINDS) == {*BY_NAME[LIFECYCLE].kinds, *BY_NAME[EVENTS].kinds}
    assert set(KINDS) > URGENT
    assert {kind for models in FAMILIES.values() for m in models for kind in kinds(m)} == set(
        MODELS
    )
    tick = Tick(id="t", source="s", key="tick:0", by="b", occurred_at=AT, received_at=AT)
    with pytest.raises(TypeError, match="made by the pipeline"):
        addressed(tick)


def test_what_a_runner_says_is_about_itself() -> None:
    of_runner = maker(runner="vm-1")
    assert of_runner.event("runner.poll", {"result": "empty"}).subject == "vm-1"  # type: ignore[union-attr]
    assert of_runner.event("runner.poll", {"runner": "vm-2"}).subject == "vm-2"  # type: ignore[union-attr]
    assert "runner" not in of_runner.event("pool.sample", {}).model_dump()
    started = of_runner.event("job.started", {"job_id": 1})
    gone = of_runner.event("host.gone", {"runner_host": "rack"})
    assert isinstance(started, LifecycleEvent)
    assert isinstance(gone, LifecycleEvent)
    assert (started.runner.name, gone.runner.name) == ("vm-1", "")


def test_the_same_said_again_has_the_same_id_and_nothing_else_has() -> None:
    said = {"outcome": "empty", "duration_ms": 4}
    once, other = maker(), maker()
    timed = {once.event("dispatch.request", {**said, "occurred_at": AT}).id for _ in range(3)}
    timed.add(other.event("dispatch.request", {**said, "occurred_at": AT}).id)
    assert len(timed) == 1
    others = ({"outcome": "served"}, {"duration_ms": 5}, {"occurred_at": AT + 1}, {"fleet": "f"})
    more = [once.event("dispatch.request", {**said, "occurred_at": AT, **each}) for each in others]
    # Without a time each is one of its own, however fast they come and whoever says it.
    more += [each.event("dispatch.request", said) for each in (once, other) for _ in range(100)]
    assert len({each.id for each in more} | timed) == len(others) + 201
    once.renew()
    assert once.event("dispatch.request", said).id not in {each.id for each in more}
    assert once.event("dispatch.request", {**said, "id": "mine"}).id == "mine"


def test_ids_fit_whatever_is_said() -> None:
    long = {"run_id": "r" * 200, "fleet": "f" * 200}
    for at in ({}, {"occurred_at": AT}):
        assert len(maker().event("run.created", {**long, **at}).id) <= 512


SECRET = "hunter2 and more"


@pytest.mark.parametrize("kind", MODELS)
def test_a_secret_is_masked_in_prose_and_nowhere_told(kind: str) -> None:
    masker = Masker([SECRET])
    whole = {name: value for name, (value, _) in sample(kind).items()}
    tried = 0
    for name, hint in hints_of(kind).items():
        said = words(hint)
        if name in {"occurred_at"} or said not in {
            "name", "names", "word", "text", "numbers by type",
        }:  # fmt: skip
            continue
        secret: Any = {"names": ["a", SECRET], "numbers by type": {SECRET: 1}}.get(said, SECRET)
        event = maker(SECRET).event(kind, {**whole, "occurred_at": AT, name: secret})
        told = masked(event, masker)
        prose = said == "word" or name in {"reason", "trace"}
        assert (told is not Drop.SECRET) is prose, name
        if not isinstance(told, Drop):
            value = addressed(told)[2]
            assert SECRET.encode() not in value
            assert json.loads(value)[name] == "***"
            assert telemetry_record(value)[1] == []
            tried += 1
            # Not even as a digest: what only differs in secrets has one id.
            other = maker("another one").event(
                kind, {**whole, "occurred_at": AT, name: "another one"}
            )
            assert told.id == other.id or name == "trace"
    assert tried > 0


def test_words_of_the_contract_are_no_secrets() -> None:
    for kind in MODELS:
        said = {name: value for name, (value, _) in sample(kind).items()}
        event = maker().event(kind, said)
        assert masked(event, Masker(["key_too_long", "unknown"])) == event


BAD: list[tuple[str, dict[str, Any] | bytes, str]] = [
    ("not_json", b'{"kind": "pool.sample"', ""),
    ("unknown_kind", {"kind": "pool.nonsense"}, "pool.nonsense"),
    ("unknown_kind", {"kind": ["pool.sample"]}, "kind"),
    ("newer_version", {"kind": "pool.sample", "version": 2}, "version"),
    ("bad_time", {"kind": "pool.sample", "occurred_at": 1_790_000_000}, "occurred_at"),
    ("bad_envelope", {"kind": "pool.sample", "fleet": ""}, "fleet"),
    ("bad_envelope", {"kind": "task.finished", "runner": "vm"}, "task_id"),
    ("bad_envelope", {"kind": "report.log", "runner": "r", "task_id": "1", "result": 7}, "result"),
    ("bad_envelope", b"[]", ""),
]  # fmt: skip


def envelope(**said: Any) -> dict[str, Any]:
    return {
        "id": "x", "source": "s", "fleet": "f", "occurred_at": AT, "received_at": AT, **said,
    }  # fmt: skip


@pytest.mark.parametrize(("reason", "said", "names"), BAD)
def test_what_cannot_be_read_says_why(
    reason: str, said: dict[str, Any] | bytes, names: str
) -> None:
    value = said if isinstance(said, bytes) else json.dumps(envelope(**said)).encode()
    with pytest.raises(Unreadable) as why:
        telemetry_record(value)
    assert why.value.reason.value == reason
    assert re.search(re.escape(names), why.value.error)


def test_what_is_odd_in_a_field_that_may_miss_counts_as_missing() -> None:
    said = envelope(kind="pool.sample", idle=-1, ready="many", desired=7, max=None)
    output, notes = telemetry_record(json.dumps(said).encode())
    assert [(note.labels, note.value) for note in notes] == [(("envelope", "unusable"), 2.0)]
    assert output.value is not None
    told = json.loads(output.value)
    assert told["desired"] == 7
    assert not told.keys() & {"idle", "ready", "max"}


def test_what_json_has_no_number_for_is_no_number() -> None:
    """The fold could not read what would be written of it."""
    for bad in ([[0.5], [1, 2], float("nan")], [[float("inf")], [1, 2], 0.5]):
        said = envelope(kind="runner.scrape", runner="r", histograms={"poll": bad})
        output, notes = telemetry_record(json.dumps(said).encode())
        assert [note.labels for note in notes] == [("envelope", "unusable")]
        assert output.value is not None
        assert not json.loads(output.value)["histograms"]


ODD = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([AT, "served", "error", "planner", "\ud800", "a\nb", "x" * 300, 1e400])
    | st.lists(st.integers() | st.text(max_size=2), max_size=3)
    | st.fixed_dictionaries({"poll": st.tuples(st.just([1.5]), st.just([1, 2]), st.floats())})
    | st.recursive(
        st.dictionaries(st.sampled_from(["poll", "success", "close", ""]), st.integers(0, 3)),
        lambda inner: (
            st.lists(inner | st.floats(), max_size=3)
            | st.dictionaries(st.sampled_from(["poll", "log", "task"]), inner, max_size=2)
        ),
        max_leaves=4,
    )
)


@given(data=st.data())
def test_whatever_is_under_a_known_kind_is_read_or_unreadable(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(MODELS)))
    said = envelope(kind=kind, **{name: value for name, (value, _) in sample(kind).items()})
    names = [*MODELS[kind].model_fields, "more"]
    for name in data.draw(st.lists(st.sampled_from(names), max_size=4, unique=True)):
        if name != "kind":
            said[name] = data.draw(ODD)
    for name in data.draw(st.lists(st.sampled_from(names), max_size=2)):
        if name != "kind":
            said.pop(name, None)
    value = json.dumps(said).encode()
    try:
        output, notes = telemetry_record(value)
    except Unreadable:
        return
    assert output.value is not None
    assert output.key is not None
    # What normalise writes the fold reads: the same, and in one way only.
    event = TELEMETRY_RECORD.validate_json(output.value)
    assert isinstance(event, MODELS[kind])
    assert output.key.decode() == event.key == key_of(event)
    assert family_of(event) in FAMILIES
    assert telemetry_record(output.value)[0] == output
    assert all(note.labels[0] in {"envelope", "occurred_at"} for note in notes)


@given(st.sampled_from(sorted(MODELS)), st.text(max_size=40) | ODD.map(json.dumps))
def test_no_text_raises_anything_but_unreadable(kind: str, text: str) -> None:
    for value in (text, f'{{"kind": "{kind}", "fleet": {text}}}', f'{{"kind": {text}}}'):
        try:
            telemetry_record(value.encode("utf-8", "surrogatepass"))
        except Unreadable:
            continue
        raise AssertionError(value)


def test_who_says_something_knows_its_fields() -> None:
    assert sayable("accounts.sample") == (
        "id", "source", "occurred_at", "trace", "fleet", "enabled",
    )  # fmt: skip
    with pytest.raises(ValueError, match="there is no kind 'x'"):
        sayable("x")
    with pytest.raises(ValueError, match=r"pool.sample has no idel; it has .*idle"):
        maker().event("pool.sample", {"idel": 3})
