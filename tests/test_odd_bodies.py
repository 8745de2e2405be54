"""Whatever a provider's body holds: facts, or Unreadable. The same of the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.agents.normalise import to_bytes
from pipeline.providers.base import ODD_REASONS, Provider
from pipeline.providers.registry import PROVIDERS
from tests.test_providers import LONG, T0, sent
from topics.models import JOBS_RECORD, Delivery, Unreadable

odd_values = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["queued", "completed", "pending", "manual", "0001-01-01T00:00:00Z", LONG])
    | st.lists(st.integers(), max_size=2)
    | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2)
)


def places(body: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where the values of a body are."""
    if at:
        yield at
    inner = body.items() if isinstance(body, dict) else enumerate(body)
    for name, value in inner:
        if isinstance(value, (dict, list)):
            yield from places(value, (*at, name))
        else:
            yield (*at, name)


@pytest.mark.parametrize("name", PROVIDERS)
def test_no_single_odd_value_raises_anything_but_unreadable(name: str) -> None:
    provider = PROVIDERS[name]
    tried: set[tuple[str, tuple[str | int, ...]]] = set()
    for event, text in sent(provider.name):
        for place in places(json.loads(text)):
            if (event, place) in tried:
                continue
            tried.add((event, place))
            for odd in (None, [1], {"a": 1}, "soon", True, -1, 0.5):
                body = holder = json.loads(text)
                for step in place[:-1]:
                    holder = holder[step]
                holder[place[-1]] = odd
                facts_or_none(provider, event, json.dumps(body))


@given(st.data())
def test_nothing_in_a_body_raises_anything_but_unreadable(data: st.DataObject) -> None:
    provider = PROVIDERS[data.draw(st.sampled_from(sorted(PROVIDERS)))]
    event, text = data.draw(st.sampled_from(sent(provider.name)))
    body = json.loads(text)
    for _ in range(data.draw(st.integers(1, 4))):
        holder: Any = body
        for _ in range(data.draw(st.integers(0, 3))):
            inner = holder.values() if isinstance(holder, dict) else holder
            holders = [each for each in inner if isinstance(each, (dict, list)) and each]
            if not holders:
                break
            holder = data.draw(st.sampled_from(holders))
        place = data.draw(st.sampled_from(list(holder if isinstance(holder, dict)
                                               else range(len(holder)))))  # fmt: skip
        holder[place] = data.draw(odd_values)
    said = facts_or_none(provider, event, json.dumps(body))
    assert said == facts_or_none(provider, event, json.dumps(body))


@given(st.sampled_from(sorted(PROVIDERS)), st.text(max_size=40) | odd_values.map(json.dumps))
def test_no_text_for_a_body_raises_anything_but_unreadable(name: str, text: str) -> None:
    for event in PROVIDERS[name].events:
        facts_or_none(PROVIDERS[name], event, text)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 5_000, "\ud800", ""])
def test_bombs_are_unreadable(text: str) -> None:
    for provider in PROVIDERS.values():
        for event, body in sent(provider.name):
            assert facts_or_none(provider, event, text) is None
            # Inside a body they cost at most that field.
            inside = f'{body.rstrip().removesuffix("}")}, "bomb": {text or "1e999"}}}'
            facts_or_none(provider, event, inside)


def facts_or_none(provider: Provider, event: str, payload: str) -> list[bytes] | None:
    try:
        said = provider.facts(Delivery.model_construct(
            id="d", kind=f"{provider.name}.{event}", source="x", occurred_at=T0, received_at=T0,
            key="k", host="github.com", headers={}, payload=payload, trace=None,
        ))  # fmt: skip
    except Unreadable:
        return None
    assert all(name in provider.odd_fields and why in ODD_REASONS for name, why in said.odd)
    for fact in said:  # as it arrives on the other side
        assert JOBS_RECORD.validate_json(to_bytes(fact)) == fact
    return [to_bytes(fact) for fact in said]
