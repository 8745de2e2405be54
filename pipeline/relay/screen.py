"""What is passed on: deliveries that their provider signed, as they came. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from pipeline.providers.base import Provider
from pipeline.providers.registry import PROVIDERS
from topics import bridge
from topics.dead_letters import SourceRecord
from topics.models import Unreadable

#: Headers of any provider that go on, beside its own: those that the gateway keeps.
KEPT: Final = frozenset({"content-type", "user-agent"})
#: The most relays that a delivery names which it came through.
_MOST_MARKS: Final = 16

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
_VALUE: Final = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")


class Skip(StrEnum):
    """Why a record is not passed on. Each is a metric label."""

    #: No HTTP headers of a provider: an envelope, or what nobody can decode.
    NOT_RAW = "not_raw"
    #: Headers that HTTP cannot carry, or one of them twice.
    ODD_HEADERS = "odd_headers"
    NO_SECRET = "no_secret"
    UNSIGNED = "unsigned"
    BAD_SIGNATURE = "bad_signature"
    FILTERED = "filtered"
    #: This relay has posted it once, and the target has posted it back.
    LOOP = "loop"
    #: It was replayed for another relay.
    NOT_OURS = "not_ours"


class Keys(Protocol):
    """Who has the secrets."""

    def of(self, provider: Provider, headers: Mapping[str, str], body: bytes) -> tuple[bytes, ...]:
        """Those one of which must have signed the body; none when none is known."""
        ...


@dataclass(frozen=True)
class Filters:
    """Which deliveries are wanted; what is empty wants all.

    Attributes:
        events: by the names that they have in kinds, such as ``workflow_job``.
        actions: as the provider calls them, such as ``queued``.
        labels: a job must ask for one of these, in any case. What has no labels is not judged.
    """

    events: frozenset[str] = frozenset()
    actions: frozenset[str] = frozenset()
    labels: frozenset[str] = frozenset()

    def want(self, provider: Provider, event: str, headers: Mapping[str, str], body: bytes) -> bool:
        """Whether a delivery passes."""
        if self.events and event not in self.events:
            return False
        if not (self.actions or self.labels):
            return True
        try:
            payload = bridge.payload_of(headers.get("content-type", ""), body).encode()
        except (Unreadable, UnicodeEncodeError):
            return False
        if self.actions and provider.glance(event, headers, payload).action not in self.actions:
            return False
        labels = provider.labels(event, payload) if self.labels else None
        return labels is None or not self.labels.isdisjoint(each.lower() for each in labels)


@dataclass(frozen=True, slots=True, eq=False)
class Sending:
    """A delivery to be posted: headers and body as they came."""

    provider: str
    event: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    record: SourceRecord


class Screen:
    """Looks at records of ``runners.webhooks``.

    Args:
        keys: the secrets; None: nothing is checked.
        group: of this relay: what is replayed for another is not for it.
        mark: names this relay, as no other is called.
    """

    def __init__(self, keys: Keys | None, filters: Filters, group: str, mark: str = "") -> None:
        self._keys = keys
        self._filters = filters
        self._group = group
        self.mark = mark

    def look(self, record: SourceRecord) -> Sending | Skip:
        """What is to be posted of a record, or why it is not passed on."""
        raw = bridge.raw(record)
        if raw is None or raw.enveloped:
            return Skip.NOT_RAW
        if raw.relay not in ("", self._group):
            return Skip.NOT_OURS
        provider = PROVIDERS[raw.form.provider]
        marks = [each.strip() for each in raw.headers.get(bridge.RELAYED_BY, "").split(",")]
        if self.mark and self.mark in marks:
            return Skip.LOOP
        headers = _passed(provider, record)
        if headers is None:
            return Skip.ODD_HEADERS
        wrong = self._checked(provider, raw.headers, raw.body)
        if wrong is not None:
            return wrong
        event = raw.form.named(raw.headers[raw.event])
        if not self._filters.want(provider, event, raw.headers, raw.body):
            return Skip.FILTERED
        seen = [each for each in marks if re.fullmatch(r"[0-9a-z-]{1,64}", each)][-_MOST_MARKS:]
        if self.mark:
            headers = (*headers, (bridge.RELAYED_BY, ",".join((*seen, self.mark))))
        return Sending(provider.name, event, tuple(headers), raw.body, record)

    def _checked(self, provider: Provider, headers: Mapping[str, str], body: bytes) -> Skip | None:
        if self._keys is None:
            return None
        secrets = self._keys.of(provider, headers, body)
        if not secrets:
            return Skip.NO_SECRET
        if not provider.signed(headers):
            return Skip.UNSIGNED
        try:
            provider.verify(headers, body, secrets)
        except Unreadable:
            return Skip.BAD_SIGNATURE
        return None


def _passed(provider: Provider, record: SourceRecord) -> Sequence[tuple[str, str]] | None:
    """The headers that go on; None for what the target would not see as we have."""
    found: dict[str, str] = {}
    for raw_name, raw_value in record.headers or ():
        name = (raw_name if isinstance(raw_name, str) else raw_name.decode("latin-1")).lower()
        if raw_value is None or not (name.startswith(provider.kept_headers) or name in KEPT):
            continue
        try:
            value = raw_value.decode()
        except UnicodeDecodeError:
            return None
        if name in found or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            return None
        found[name] = value
    return tuple(found.items())
