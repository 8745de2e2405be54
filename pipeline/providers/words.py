"""Bodies of providers whose words are others than GitHub's: read, and told in GitHub's words.

GitHub's rules (:mod:`pipeline.providers.github`) then make the facts, so that there is one set of
rules. What is passed on is passed as it came: those rules know each field's oddities.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from pipeline.providers.base import Facts
from pipeline.providers.github import facts
from topics.keys import canonical_host, host_of
from topics.models import GITHUB_HOST, Delivery, Reason, Unreadable
from topics.reading import mend_surrogates

Odd = Counter[tuple[str, str]]

_ANYTHING: Final = msgspec.json.Decoder()


def object_of(payload: str) -> dict[str, Any]:
    """A body as an object. Raises Unreadable: ``not_json``, or ``bad_payload`` for another kind."""
    try:
        try:
            found = _ANYTHING.decode(payload)
        except (msgspec.DecodeError, UnicodeEncodeError):
            found = _ANYTHING.decode(mend_surrogates(payload.encode("utf-8", "replace")))
    except msgspec.DecodeError as error:
        raise Unreadable(Reason.NOT_JSON, f"Invalid JSON: {error}") from error
    except RecursionError as error:
        raise Unreadable(Reason.NOT_JSON, "the body is nested too deeply") from error
    if not isinstance(found, dict):
        raise Unreadable(Reason.BAD_PAYLOAD, f"body: an object, not a {type(found).__name__}")
    return found


def within(holder: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object inside another; empty when there is none."""
    found = holder.get(name)
    return found if isinstance(found, dict) else {}


def told(
    delivery: Delivery,
    event: str,
    body: Mapping[str, Any],
    *,
    urls: Iterable[Any] = (),
    occurred_at: int | None = None,
    odd: Odd | None = None,
) -> Facts:
    """The facts of a body that is in GitHub's words, about the provider of the delivery's kind.

    Args:
        event: one of GitHub's: what kind of body it is.
        urls: where the host is read from when the delivery does not say it.
        occurred_at: when it happened, where the body tells that better than the delivery.
        odd: what was odd before it was in GitHub's words.

    Raises Unreadable as :func:`pipeline.providers.github.facts`.
    """
    try:
        payload = json.dumps(body)
    except (RecursionError, ValueError) as error:  # nested too deeply, a number of 5,000 digits
        raise Unreadable(Reason.BAD_PAYLOAD, f"body: {type(error).__name__}") from error
    provider = delivery.kind.partition(".")[0]
    host = canonical_host(delivery.host)
    if host in ("", GITHUB_HOST):  # nobody said it
        host = host_of(urls)
        if not host:
            raise Unreadable(Reason.BAD_PAYLOAD, "neither headers nor URLs tell the host")
    said = facts(
        delivery.model_copy(
            update={
                "kind": f"{provider}.{event}",
                "host": host[:256],
                "headers": {},
                "payload": payload,
                "occurred_at": delivery.occurred_at if occurred_at is None else occurred_at,
            }
        ),
        provider,
    )
    said.odd.update(odd or {})
    return said
