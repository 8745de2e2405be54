"""Every provider, by its name: where normalise, metrics and replay look them up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pipeline.providers.base import Provider
from pipeline.providers.gitea import Gitea
from pipeline.providers.github import GitHub
from pipeline.providers.gitlab import GitLab
from topics.models import Reason, Unreadable

PROVIDERS: Final[dict[str, Provider]] = {each.name: each for each in (GitHub(), Gitea(), GitLab())}


def provider_of(kind: str) -> Provider:
    """The provider of a delivery's kind, ``<provider>.<event>``.

    Raises Unreadable (``unknown_kind``) when there is none.
    """
    provider = PROVIDERS.get(kind.partition(".")[0])
    if provider is None:
        raise Unreadable(Reason.UNKNOWN_KIND, f"no facts in a {kind!r} delivery")
    return provider


def check(
    provider: Provider,
    headers: Mapping[str, str],
    body: bytes,
    secrets: Mapping[str, Sequence[bytes]],
) -> None:
    """Raise Unreadable (``bad_signature``) for what may not be believed.

    ``secrets`` are those of each provider. Without any nothing is checked. Where there are some, a
    provider without is not believed either: else whoever can reach the topic would speak for it.
    """
    if not secrets:
        return
    known = secrets.get(provider.name)
    if not known:
        raise Unreadable(
            Reason.BAD_SIGNATURE,
            f"secrets are set, and none for {provider.name} ({provider.name}_secrets)",
        )
    provider.verify(headers, body, known)
