"""Every provider, by its name: where normalise, metrics and replay look them up."""

from __future__ import annotations

from typing import Final

from pipeline.providers.base import Provider
from pipeline.providers.github import GitHub
from topics.models import Reason, Unreadable

PROVIDERS: Final[dict[str, Provider]] = {each.name: each for each in (GitHub(),)}


def provider_of(kind: str) -> Provider:
    """The provider of a delivery's kind, ``<provider>.<event>``.

    Raises Unreadable (``unknown_kind``) when there is none.
    """
    provider = PROVIDERS.get(kind.partition(".")[0])
    if provider is None:
        raise Unreadable(Reason.UNKNOWN_KIND, f"no facts in a {kind!r} delivery")
    return provider
