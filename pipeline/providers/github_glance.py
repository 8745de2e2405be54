"""GitHub's webhooks at a glance, for whoever receives them: a few fields of a body, nothing judged.

Some ten microseconds for a body of 10 kB. What these few fields cannot settle is left to the facts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from pipeline.providers.base import Glance, Provider, glance_of_facts
from pipeline.providers.github_bodies import BODY, REPOSITORY, Repository, identity, is_null
from topics.keys import GITHUB_HOST, github_host, job_key, run_key

#: The headers that name who sends: a hook, and the App, organisation or repository it belongs to.
_HOOK: Final = "x-github-hook-id"
_TARGET: Final = "x-github-hook-installation-target-id"
#: A number longer than this is no id.
_LONGEST_ID: Final = 20


class _Known(Struct, gc=False):
    """A job or a run."""

    id: Any = None
    html_url: Any = None


class _Sender(Struct, gc=False):
    installation: _Known | None = None


class _Asking(Struct, gc=False):
    labels: Any = None


class _Asks(Struct, gc=False):
    workflow_job: _Asking | None = None


class _Hook(Struct, gc=False):
    events: list[str] = []


class _Greeting(Struct, gc=False):
    hook: _Hook = msgspec.field(default_factory=_Hook)


_KNOWN: Final = msgspec.json.Decoder(_Known)
_SENDER: Final = msgspec.json.Decoder(_Sender)
_GREETING: Final = msgspec.json.Decoder(_Greeting)
_ASKS: Final = msgspec.json.Decoder(_Asks)
#: What a decoder raises for what it cannot read: no JSON, no UTF-8, too deep.
_UNREAD: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def glance(github: Provider, event: str, headers: Mapping[str, str], payload: bytes) -> Glance:
    """See :meth:`pipeline.providers.base.Provider.glance`."""
    try:
        return _glance(github, event, headers, payload)
    except (*_UNREAD, ValueError):
        return glance_of_facts(github, event, headers, payload)


def _glance(github: Provider, event: str, headers: Mapping[str, str], payload: bytes) -> Glance:
    body = BODY.decode(payload)
    ours: Raw = body.workflow_run if event == "workflow_run" else body.workflow_job
    known = _KNOWN.decode(ours)
    number = identity(known.id)
    if number is None:
        return glance_of_facts(github, event, headers, payload)
    repository = Repository() if is_null(body.repository) else REPOSITORY.decode(body.repository)
    host = github_host(GITHUB_HOST, headers, (known.html_url, repository.html_url))
    key = run_key if event == "workflow_run" else job_key
    action = body.action if body.action in github.actions else "other"
    return Glance(key(github.name, host, number), action)


def senders(headers: Mapping[str, str], body: bytes) -> Sequence[str]:
    """See :meth:`pipeline.providers.base.Provider.senders`."""
    found = [headers[name] for name in (_HOOK, _TARGET) if name in headers]
    try:
        sender = _SENDER.decode(body).installation
    except _UNREAD:
        sender = None
    if sender is not None and isinstance(sender.id, int):
        found.append(str(sender.id))
    return [each for each in found if each.isascii() and each.isdecimal()
            and len(each) <= _LONGEST_ID]  # fmt: skip


def labels(event: str, payload: bytes) -> Sequence[str] | None:
    """See :meth:`pipeline.providers.base.Provider.labels`. Gitea's bodies have them there, too."""
    try:
        asking = None if event != "workflow_job" else _ASKS.decode(payload).workflow_job
    except _UNREAD:
        return None
    if asking is None or not isinstance(asking.labels, list):
        return None
    return [each for each in asking.labels if isinstance(each, str)]


def setup(event: str, payload: bytes) -> Mapping[str, bool]:
    """See :meth:`pipeline.providers.base.Provider.setup`."""
    if event != "ping":
        return {}
    try:
        sent = set(_GREETING.decode(payload).hook.events)
    except _UNREAD:
        return {}
    return {name: not sent.isdisjoint((name, "*")) for name in ("workflow_job", "workflow_run")}
