"""Webhooks that we send ourselves, as the provider would: in raw form, and signed. Pure.

Where workers know secrets they believe nothing unsigned. So what is replayed, posted by hand or
simulated is signed with the newest secret that the settings name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from pipeline.providers.registry import PROVIDERS
from topics import bridge
from topics.models import Delivery, Unreadable

#: Headers of a record, in order.
Headers = Sequence[tuple[str, bytes]]
_NONE: Final[Mapping[str, Sequence[bytes]]] = {}


class Sent(NamedTuple):
    """A record for ``runners.webhooks``."""

    key: bytes
    value: bytes
    headers: Headers


class Signer:
    """Makes records of deliveries, such that workers with the same settings believe them.

    A signature that is there stays, right or wrong, for the workers to judge. ``trust_envelopes``
    says that what is sent here counts as checked: then a wrong one is replaced, too. Without
    ``secrets`` nothing is signed.
    """

    def __init__(
        self, secrets: Mapping[str, Sequence[bytes]] = _NONE, trust_envelopes: bool = False
    ) -> None:
        self._secrets = secrets
        self._trusted = trust_envelopes

    def record(self, delivery: Delivery, envelope: bytes = b"") -> Sent:
        """The record in raw form; an envelope where :func:`topics.bridge.natural` finds none.

        ``envelope`` is the delivery as it was written, if it was.
        """
        natural = bridge.natural(delivery)
        key = delivery.key.encode()
        if natural is not None:
            headers, body = natural
            return Sent(key, body, self.signed(headers, body))
        provider = delivery.kind.partition(".")[0]
        # As the workers encode it: a payload may have half of a surrogate pair.
        body = delivery.payload.encode("utf-8", "surrogatepass")
        more = dict(self._signature(provider, delivery.headers, body))
        if envelope and not more:
            return Sent(key, envelope, ())
        replaced = PROVIDERS[provider].signatures if more else ()
        kept = {name: v for name, v in delivery.headers.items() if name.lower() not in replaced}
        delivery = delivery.model_copy(update={"headers": kept | more})
        return Sent(key, delivery.model_dump_json(exclude_defaults=True).encode(), ())

    def signed(self, headers: Headers, body: bytes) -> Headers:
        """The headers of a webhook in raw form, with its signature."""
        if not self._secrets:
            return headers
        told = {name.lower(): value.decode("utf-8", "replace") for name, value in headers}
        named = bridge.form_of(told)
        if named is None:
            return headers
        more = self._signature(named[0].provider, told, body)
        if not more:
            return headers
        replaced = PROVIDERS[named[0].provider].signatures
        kept = [each for each in headers if each[0].lower() not in replaced]
        return [*kept, *((name, value.encode()) for name, value in more.items())]

    def _signature(
        self, provider: str, headers: Mapping[str, str], body: bytes
    ) -> Mapping[str, str]:
        """The headers that are missing for the body to be believed."""
        secrets = self._secrets.get(provider)
        if not secrets:
            return {}
        known = PROVIDERS[provider]
        made = known.sign(body, secrets[0])
        told = {name.lower(): value for name, value in headers.items()}
        if not told.keys().isdisjoint(known.signatures):
            if not self._trusted:
                return {}
            with suppress(Unreadable):
                known.verify(told, body, secrets)
                return {}
        return made
