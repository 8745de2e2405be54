"""The natural form of a webhook: value = the body's raw bytes, headers = the HTTP headers.

Every HTTP-to-Kafka bridge produces it, and so does :meth:`topics.producer.Producer.webhook`.
Nothing is encoded twice, and the bytes are those that the provider signed. The other form on
``runners.webhooks`` is the envelope, :class:`~topics.models.Delivery` as JSON.

A record came over HTTP when one of its headers is that by which a provider names the event
(:data:`FORMS`); names of headers are compared without regard to case. Should its value be an
envelope all the same, it is read as one.

Pure: a record in, a delivery out (:func:`delivery`), or the other way (:func:`natural`). No clock.
What the headers do not say, the record says:

* the arrival is the record's timestamp, or what :data:`RECEIVED_AT` says, if that is earlier. A
  timestamp that cannot be (-1, seconds, the year 2200) gives way to the clock in the delivery id;
* without a delivery id there is one made of the body, so the same body twice is one statement;
* a delivery id without a clock leaves the time of the event to :data:`OCCURRED_AT`, else to the
  arrival; who says so is the provider, or :data:`SOURCE`;
* a body that GitHub sent as ``application/x-www-form-urlencoded`` is the ``payload`` in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final
from urllib.parse import parse_qs

from pydantic_core import from_json

from topics.dead_letters import TOKENS, SourceRecord
from topics.envelope import EARLIEST_MS, LATEST_MS
from topics.keys import GITHUB_HOST, canonical_host, github_host
from topics.models import Delivery, Reason, Unreadable

#: When a record that is posted again first arrived, in milliseconds: a header of our own.
RECEIVED_AT: Final = "runnerstream-received-at"
#: When an event happened whose delivery id has no clock, in milliseconds; and who says so, when it
#: is not the provider. Headers of our own, for what is told from files.
OCCURRED_AT: Final = "runnerstream-occurred-at"
SOURCE: Final = "runnerstream-source"
#: Which relay a record is for that is posted again because that relay could not pass it on: its
#: consumer group. To everybody else it is the same delivery once more. A header of our own.
RELAY: Final = "runnerstream-relay"
#: The relays that a delivery came through, comma-separated: a header of HTTP, kept with the record.
RELAYED_BY: Final = "x-runnerstream-relayed-by"
#: Headers that a bridge may pass on and nobody should store.
CREDENTIALS: Final = frozenset({"authorization", "proxy-authorization", "cookie"})
#: An event at the provider is not later than its arrival; clocks may differ by a day.
_AHEAD_MS: Final = 86_400_000

_FORM: Final = "application/x-www-form-urlencoded"
_GUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-1[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
#: 100 ns intervals between 1582-10-15, where UUID version 1 counts from, and 1970-01-01.
_GUID_EPOCH: Final = 0x01B2_1DD2_1381_4000


def guid_time_ms(guid: str) -> int | None:
    """The time inside a delivery id, in milliseconds, or None.

    GitHub's delivery ids are UUIDs of version 1, which carry a 100 ns clock; it agreed with the
    event in every sample taken (not documented by GitHub). Other versions, and times that cannot
    be a delivery's (before 2015, after 2100), give None.
    """
    guid = guid.lower()
    if _GUID.fullmatch(guid) is None:
        return None
    ticks = int(guid[15:18] + guid[9:13] + guid[:8], 16)
    ms = (ticks - _GUID_EPOCH) // 10_000
    return ms if EARLIEST_MS <= ms <= LATEST_MS else None


def _as_it_is(event: str) -> str:
    return event.strip().lower()[:64]


def _without_hook(event: str) -> str:
    """``Job Hook`` is the event ``job``, ``Merge Request Hook`` is ``merge_request``."""
    return event.strip().lower().removesuffix(" hook").replace(" ", "_")[:64]


@dataclass(frozen=True, slots=True)
class Form:
    """What one provider's HTTP headers mean. Names are lower-case."""

    provider: str
    #: Names the event. A record that has it is this provider's, in raw form.
    event: str
    #: The delivery's id.
    delivery: str
    #: The time inside a delivery's id, in milliseconds, where it has one.
    clock: Callable[[str], int | None]
    #: The provider's host, from the headers.
    host: Callable[[Mapping[str, str]], str]
    #: The header that names a host of one's own, if there is one.
    named_host: str = ""
    #: Events that no webhook tells: what the provider's API answers. There are no HTTP headers for
    #: them, so they are always envelopes.
    asked: frozenset[str] = frozenset()
    #: Other headers that name the event, and beside each the one with the delivery's id.
    also: Mapping[str, str] = field(default_factory=dict)
    #: The event's name in kinds, from the header's value; and the other way.
    named: Callable[[str], str] = _as_it_is
    header_of: Callable[[str], str] = str

    def header_in(self, headers: Mapping[str, str]) -> str | None:
        """The header among these that names the event. Names are lower-case."""
        if self.event in headers:
            return self.event
        return next((name for name in self.also if name in headers), None)

    def delivery_in(self, headers: Mapping[str, str], event: str) -> str:
        """The delivery's id beside the header that names the event; empty when none tells."""
        return headers.get(self.also.get(event, self.delivery), "").strip()[:512]


#: Every provider's form, by its name. A new provider has a line here. Gitea and Forgejo send
#: GitHub's headers as well, so theirs are looked for first.
FORMS: Final[dict[str, Form]] = {
    "gitea": Form(
        provider="gitea",
        event="x-gitea-event",
        delivery="x-gitea-delivery",
        clock=lambda delivery: None,
        # No header tells it; the URLs in the body do.
        host=lambda headers: GITHUB_HOST,
        also={"x-forgejo-event": "x-forgejo-delivery"},
    ),
    "gitlab": Form(
        provider="gitlab",
        event="x-gitlab-event",
        delivery="x-gitlab-event-uuid",
        clock=lambda delivery: None,
        host=lambda headers: canonical_host(headers.get("x-gitlab-instance", "")) or GITHUB_HOST,
        named_host="x-gitlab-instance",
        named=_without_hook,
        header_of=lambda event: f"{event.replace('_', ' ').title()} Hook",
    ),
    "github": Form(
        provider="github",
        event="x-github-event",
        delivery="x-github-delivery",
        clock=guid_time_ms,
        host=lambda headers: github_host(GITHUB_HOST, headers, ()),
        named_host="x-github-enterprise-host",
        asked=frozenset({"api_job"}),
    ),
}


def form_of(headers: Mapping[str, str]) -> tuple[Form, str] | None:
    """Whose headers these are, and the one that names the event. Names are lower-case."""
    for form in FORMS.values():
        name = form.header_in(headers)
        if name is not None:
            return form, name
    return None


@dataclass(frozen=True, slots=True)
class Raw:
    """A record with a provider's HTTP headers: whose it is, headers and body as they came."""

    form: Form
    #: The header that names the event.
    event: str
    #: Lower-case names, without credentials. Of a name that came twice, the last.
    headers: dict[str, str]
    body: bytes
    record: SourceRecord
    #: What :data:`RECEIVED_AT` and :data:`OCCURRED_AT` say.
    first: str
    happened: str
    #: The provider, or what :data:`SOURCE` says.
    source: str
    #: Whether the value is an envelope that comes with such headers.
    enveloped: bool
    #: What :data:`RELAY` says.
    relay: str = ""


def raw(record: SourceRecord) -> Raw | None:
    """The record as a bridge wrote it; None without a provider's header, or without a value."""
    body = record.value
    if not record.headers or body is None:
        return None
    headers = {
        (name if isinstance(name, str) else _text(name)).lower(): str(value, "utf-8", "replace")
        for name, value in record.headers
        if value is not None
    }
    found = form_of(headers)
    if found is None:
        return None
    form, event = found
    for name in CREDENTIALS & headers.keys():
        del headers[name]
    return Raw(
        form,
        event,
        headers,
        body,
        record,
        first=headers.pop(RECEIVED_AT, ""),
        happened=headers.pop(OCCURRED_AT, ""),
        source=headers.pop(SOURCE, "").strip()[:512] or form.provider,
        enveloped=_is_envelope(form.provider, body),
        relay=headers.pop(RELAY, ""),
    )


def delivery(found: Raw) -> Delivery:
    """The same delivery as an envelope would say it.

    Raises Unreadable: ``not_json`` for a body that is no UTF-8, or a form without a payload;
    ``bad_time`` when neither the record nor the delivery id tells a time that can be.
    """
    form, headers = found.form, found.headers
    for name in TOKENS:
        if name in headers:
            headers = {each: value for each, value in headers.items() if each != name}
    event = form.named(headers[found.event])
    told = form.delivery_in(headers, found.event)
    made = form.clock(told) if told else None
    host = form.host(headers)[:256]
    received = _received(found.record.timestamp, found.first, made)
    clocks = (made, _time(found.happened), received)
    latest = received + _AHEAD_MS
    return Delivery(
        id=told or f"body-{blake2b(found.body, digest_size=12).hexdigest()}",
        kind=f"{form.provider}.{event}",
        source=found.source,
        occurred_at=next(at for at in clocks if at is not None and at <= latest),
        received_at=received,
        # It has done what it is for: the record has its partition.
        key=_text(found.record.key)[:512] or f"{form.provider}:{host}:unknown",
        host=host,
        headers=headers,
        payload=payload_of(headers.get("content-type", ""), found.body),
    )


def natural(delivery: Delivery) -> tuple[list[tuple[str, bytes]], bytes] | None:
    """Headers and body of the record in raw form that says the same; None when there is none.

    An envelope has no raw form when no webhook tells its event, when it has a trace, or when its
    texts are none that headers and bytes could carry. Credentials are left out. Of the time of
    arrival the record's own stands when that is earlier.
    """
    provider, _, event = delivery.kind.partition(".")
    form = FORMS.get(provider)
    if form is None or event in form.asked or delivery.trace is not None:
        return None
    headers = {
        name.lower(): value
        for name, value in delivery.headers.items()
        if name.lower() not in CREDENTIALS
    }
    found = form_of(headers)
    if found is not None and found[0] is not form:
        return None
    name = form.event if found is None else found[1]
    if form.named(headers.setdefault(name, form.header_of(event))) != event:
        return None
    if headers.get("content-type", "").lower().startswith(_FORM):
        # The payload is what was in the form.
        del headers["content-type"]
    headers[form.also.get(name, form.delivery)] = delivery.id
    host = canonical_host(delivery.host)
    if host not in (form.host(headers), form.host({})):
        if not form.named_host:
            return None
        headers[form.named_host] = host
    headers[RECEIVED_AT] = str(delivery.received_at)
    made = form.clock(delivery.id)
    unclocked = made is None or made > delivery.received_at + _AHEAD_MS
    if unclocked and delivery.occurred_at != delivery.received_at:
        headers[OCCURRED_AT] = str(delivery.occurred_at)
    if delivery.source != provider:
        headers[SOURCE] = delivery.source
    if any(told != told.strip() for told in (delivery.id, delivery.source)):
        return None
    try:
        body = delivery.payload.encode()
        said = [(name, value.encode()) for name, value in headers.items()]
    except UnicodeEncodeError:
        return None
    return None if _is_envelope(provider, body) else (said, body)


def without_tokens(delivery: Delivery) -> Delivery:
    """The delivery without the headers that are a secret themselves."""
    if TOKENS.isdisjoint(map(str.lower, delivery.headers)):
        return delivery
    kept = {name: value for name, value in delivery.headers.items() if name.lower() not in TOKENS}
    return delivery.model_copy(update={"headers": kept})


def _text(raw: bytes | None) -> str:
    return "" if raw is None else raw.decode("utf-8", "replace")


def _received(timestamp: int, told: str, made: int | None) -> int:
    first = _time(told)
    if EARLIEST_MS <= timestamp <= LATEST_MS:
        return first if first is not None and first < timestamp else timestamp
    if made is None:
        raise Unreadable(
            Reason.BAD_TIME,
            f"the record's timestamp {timestamp} is no time in milliseconds from 2015 to 2100, "
            "and the delivery id tells none",
        )
    return made


def _time(told: str) -> int | None:
    """The milliseconds that a header of our own says; None for what is no time."""
    if not (told.isascii() and told.isdecimal() and len(told) < 15):
        return None
    ms = int(told)
    return ms if EARLIEST_MS <= ms <= LATEST_MS else None


def payload_of(content_type: str, body: bytes) -> str:
    """What a body carries: itself, or the ``payload`` of a form. Raises Unreadable."""
    try:
        if not content_type.lower().startswith(_FORM):
            return body.decode()
        return parse_qs(body.decode(), errors="strict", max_num_fields=100)["payload"][0]
    except UnicodeDecodeError as error:
        raise Unreadable(Reason.NOT_JSON, f"the body is not UTF-8: {error.reason}") from None
    except (KeyError, ValueError):
        raise Unreadable(Reason.NOT_JSON, "the body is a form without a payload") from None


def _is_envelope(provider: str, body: bytes) -> bool:
    """Whether a producer of envelopes sends the provider's headers as well: the content decides."""
    # GitHub's bodies begin so, and no envelope does: searching 9 kB would cost 4 us.
    if body.startswith(b'{"action"') or b'"payload"' not in body or b'"kind"' not in body:
        return False
    try:
        found = from_json(body)
    except ValueError:
        return False
    return (
        isinstance(found, dict)
        and str(found.get("kind")).startswith(f"{provider}.")
        and isinstance(found.get("payload"), str)
    )
