"""What a provider is: the protocol behind which GitHub and others stand. Pure.

A new provider is a file with a class of this shape, a line in ``pipeline.providers.registry``, and
one in ``topics.bridge.FORMS`` if its webhooks shall be taken in raw form.
"""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from hashlib import sha256
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol, cast

from topics import bridge
from topics.envelope import EARLIEST_MS
from topics.models import Delivery, JobFact, Reason, RunFact, RunLink, Unreadable

Fact = JobFact | RunFact | RunLink

#: How far a time may be ahead of a delivery's arrival before we stop believing it.
AHEAD_MS: Final = 86_400_000

#: Why a field is odd.
ODD_REASONS: Final = ("wrong_type", "unusable", "future")


class Facts(list[Fact]):
    """What a delivery says, in a fixed order, and what in it was odd."""

    def __init__(
        self,
        said: Iterable[Fact] = (),
        odd: Counter[tuple[str, str]] | None = None,
        ignored: str | None = None,
    ) -> None:
        super().__init__(said)
        #: How often a field had a value that it cannot have, by name and reason.
        self.odd: Counter[tuple[str, str]] = Counter() if odd is None else odd
        #: The event, when it is one that says nothing about jobs: ``ping`` or ``other``.
        self.ignored = ignored


class Glance(NamedTuple):
    """What whoever receives a webhook needs to know of it, without its facts."""

    #: Of the job or the run that it is about; empty when it is about none.
    key: str = ""
    #: One of the provider's actions, or ``other``.
    action: str = "other"
    #: Whether it can have no facts: it is for the dead letters.
    malformed: bool = False


class Provider(Protocol):
    """One source of webhooks.

    What it returns depends on its arguments alone: the same delivery gives the same facts, byte
    for byte. tests/test_providers.py holds every registered one to this.
    """

    @property
    def name(self) -> str:
        """What its kinds begin with, and its keys: a word without a dot or a colon."""
        ...

    @property
    def events(self) -> Collection[str]:
        """The events that say something about jobs. Each is a metric label."""
        ...

    @property
    def other_events(self) -> Collection[str]:
        """Its further events: authentic, and they say nothing about jobs."""
        ...

    @property
    def odd_fields(self) -> Collection[str]:
        """Names under which it counts odd fields. Each is a metric label."""
        ...

    @property
    def signatures(self) -> Collection[str]:
        """The headers that :meth:`verify` looks at, lower-case."""
        ...

    def verify(self, headers: Mapping[str, str], body: bytes, secrets: Sequence[bytes]) -> None:
        """Raise Unreadable (``bad_signature``) unless one of the secrets signed these bytes.

        Names of ``headers`` are lower-case.
        """
        ...

    def sign(self, body: bytes, secret: bytes) -> Mapping[str, str]:
        """The headers by which :meth:`verify` knows that the secret signed these bytes."""
        ...

    def facts(self, delivery: Delivery) -> Facts:
        """What a delivery of this provider says. Raises Unreadable for what says nothing."""
        ...

    @property
    def actions(self) -> Collection[str]:
        """What its events call that which happened. Each is a metric label."""
        ...

    @property
    def content_types(self) -> Collection[str]:
        """The media types that it sends bodies as, lower-case."""
        ...

    @property
    def kept_headers(self) -> tuple[str, ...]:
        """How the names of its own headers begin, lower-case. They are kept with the body."""
        ...

    def signed(self, headers: Mapping[str, str]) -> bool:
        """Whether there is anything that :meth:`verify` could check, right or wrong."""
        ...

    def signed_at(self, headers: Mapping[str, str]) -> int | None:
        """When it was signed, by the signature that :meth:`verify` found right: milliseconds since
        1970, 0 for what is no time. None where signatures have no time."""
        ...

    def senders(self, headers: Mapping[str, str], body: bytes) -> Sequence[str]:
        """Ids under which an operator may keep a secret for this sender alone: of its hook, or of
        its installation. What they say is not proven yet. Never raises."""
        ...

    def glance(self, event: str, headers: Mapping[str, str], payload: bytes) -> Glance:
        """What a delivery of an event that says something about jobs is about. ``payload`` is
        JSON, or was to be. Never raises."""
        ...

    def labels(self, event: str, payload: bytes) -> Sequence[str] | None:
        """The labels that a delivery's job asks for, as the provider tells them; None when it tells
        none: of an event that is about no job, or of a job whose labels nobody says. ``payload`` as
        in :meth:`glance`. Never raises."""
        ...

    def setup(self, event: str, payload: bytes) -> Mapping[str, bool]:
        """What an event that greets a new hook tells of how it is set up: which of the events that
        say something about jobs it sends. Empty for every other event. Never raises."""
        ...


class Receiving:
    """What most providers say about receiving their webhooks, to be inherited."""

    actions: Collection[str] = ()
    content_types: Collection[str] = ("application/json",)
    kept_headers: tuple[str, ...] = ()
    signatures: Collection[str] = ()

    def signed(self, headers: Mapping[str, str]) -> bool:
        """Whether any header that is looked at for a signature says anything."""
        return any(headers.get(name, "").strip() for name in self.signatures)

    def signed_at(self, headers: Mapping[str, str]) -> int | None:
        """None: nothing but the body is signed."""
        return None

    def senders(self, headers: Mapping[str, str], body: bytes) -> Sequence[str]:
        """None: all share the provider's secrets."""
        return ()

    def glance(self, event: str, headers: Mapping[str, str], payload: bytes) -> Glance:
        """What the facts say."""
        return glance_of_facts(cast("Provider", self), event, headers, payload)

    def labels(self, event: str, payload: bytes) -> Sequence[str] | None:
        """Nobody says."""
        return None

    def setup(self, event: str, payload: bytes) -> Mapping[str, bool]:
        """Nothing greets."""
        return MappingProxyType({})


def glance_of_facts(
    provider: Provider, event: str, headers: Mapping[str, str], payload: bytes
) -> Glance:
    """A glance for which all facts are worked out: slower, and right about every oddity."""
    try:
        said = provider.facts(
            Delivery(
                id="-", kind=f"{provider.name}.{event}", source=provider.name, key="-",
                host=bridge.FORMS[provider.name].host(headers)[:256], headers=dict(headers),
                occurred_at=EARLIEST_MS, received_at=EARLIEST_MS, payload=payload.decode(),
            )
        )  # fmt: skip
    except (Unreadable, ValueError):
        return Glance(malformed=True)
    if not said:
        return Glance()
    first = said[0]
    action = first.cause.rpartition(".")[2] if isinstance(first, JobFact) else ""
    return Glance(first.key, action if action in provider.actions else "other")


def sign_sha256(body: bytes, secret: bytes) -> str:
    """``sha256=<hex>``, the HMAC of the body that most providers send."""
    return "sha256=" + hmac.digest(secret, body, sha256).hex()


def verify_sha256(given: str | None, header: str, body: bytes, secrets: Sequence[bytes]) -> None:
    """Check ``sha256=<hex>``, the HMAC of the body that most providers send.

    Raises as :func:`verify_hex`.
    """
    verify_hex(given, header, body, secrets, "sha256=")


def verify_hex(
    given: str | None, header: str, body: bytes, secrets: Sequence[bytes], prefix: str = ""
) -> None:
    """Check the HMAC-SHA256 of the body, in hex after ``prefix``.

    Compares in constant time. Any of the secrets will do, so they can be rotated. Raises
    Unreadable (``bad_signature``); it tells nothing of the secrets and of the signature wanted.
    """
    if not given:
        raise Unreadable(Reason.BAD_SIGNATURE, f"no {header}, and a secret is set")
    told = given.strip().lower().encode("utf-8", "replace")
    right = False
    for secret in secrets:
        wanted = prefix + hmac.digest(secret, body, sha256).hex()
        right |= hmac.compare_digest(wanted.encode(), told)
    if not right:
        raise not_signed(header, secrets)


def not_signed(header: str, secrets: Sequence[bytes]) -> Unreadable:
    """That a signature is there and is none of ours."""
    return Unreadable(
        Reason.BAD_SIGNATURE,
        f"{header} was not made of this body with any secret that is set ({len(secrets)})",
    )
