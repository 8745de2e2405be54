"""Which secrets count for a delivery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pipeline.providers.base import Provider

Secrets = Mapping[str, Sequence[bytes]]
OwnSecrets = Mapping[tuple[str, str], Sequence[bytes]]


class Keyring:
    """Secrets by provider, and those of single senders: a hook, an App, a repository.

    A sender with secrets of its own has no others. Its id is part of what is to be proven, so who
    knows only the secret of all cannot send as one of these, nor the other way round.

    Args:
        general: by provider.
        own: by provider and sender.
    """

    def __init__(self, general: Secrets, own: OwnSecrets) -> None:
        self._general: Final = {name: tuple(each) for name, each in general.items() if each}
        self._own: Final = {who: tuple(each) for who, each in own.items() if each}
        self._with_own = {provider for provider, _ in self._own}

    def knows(self, provider: str) -> bool:
        """Whether deliveries of the provider can be checked at all."""
        return provider in self._general or provider in self._with_own

    def of(self, provider: Provider, headers: Mapping[str, str], body: bytes) -> tuple[bytes, ...]:
        """The secrets one of which must have signed the body; none when none is known."""
        name = provider.name
        if name in self._with_own:
            for sender in provider.senders(headers, body):
                found = self._own.get((name, sender))
                if found is not None:
                    return found
        return self._general.get(name, ())

    def __repr__(self) -> str:
        return f"Keyring({sorted(self._general)}, {sorted(self._own)})"
