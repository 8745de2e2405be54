"""Posting recorded deliveries: from files to ``runners.webhooks``.

A file holds one delivery or an array of them (``.json``), or one a line (``.jsonl``, ``.ndjson``),
as UTF-8, UTF-16 or UTF-32. A delivery is

* a body as GitHub sent it. Its event is seen from its shape (``workflow_job``, ``workflow_run``,
  ``ping``) or from the file name (``workflow_job.queued.json``);
* or an envelope, as GitHub's redelivery API and most recorders write it:
  ``{"headers": {...}, "payload": {...} or "..."}``; ``body`` and ``request`` are understood for
  ``payload`` and for the envelope's own wrapper, and header names in any case;
* or a job as GitHub's REST API returns it, alone or in the list of a run's jobs
  (``{"total_count": 2, "jobs": [...]}``). No event is made up for it: it says where the job is.

Events that say nothing about jobs are posted too: the pipeline knows and ignores them.

A body without a delivery id gets one made from its content, so replaying a file twice says
nothing new.

What is posted is in raw form: the body's bytes, and the headers that were recorded, the signature
among them. The bytes are those of the file where the body stands in it as text; one that stands in
an envelope as an object is written anew, so the signature says nothing of it and is left out. A job
of the REST API came without HTTP headers of a webhook, and stays an envelope.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
from pydantic import ValidationError

from pipeline.providers.registry import PROVIDERS
from pipeline.providers.sending import Signer
from topics.bridge import CREDENTIALS, FORMS, form_of
from topics.catalogue import WEBHOOKS
from topics.envelope import EARLIEST_MS, LATEST_MS
from topics.keys import github_host, job_key, run_key
from topics.models import GITHUB_HOST, Delivery
from topics.reading import mend_surrogates

EVENTS: Final = ("workflow_job", "workflow_run")
#: The kind of a job that was asked for instead of told.
API_JOB: Final = "api_job"
_LINES: Final = (".jsonl", ".ndjson")


class ReplayError(ValueError):
    """A file that cannot be replayed: says which file, which line and what is wrong."""

    def __init__(self, path: Path, line: int | None, what: str) -> None:
        where = f"{path}:{line}" if line else str(path)
        super().__init__(f"{where}: {what}")
        self.path = path
        self.line = line


class Poster(Protocol):
    """What posts: :class:`topics.producer.Producer`."""

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        """Take one record."""
        ...


def replay(
    files: Iterable[Path],
    producer: Poster,
    *,
    received_ms: int | None = None,
    signer: Signer | None = None,
) -> int:
    """Post every delivery in the files, in order; returns how many.

    ``received_ms`` stands for the time of arrival, by default now. ``signer`` signs what came
    without a signature. Raises :class:`ReplayError` at the first thing that is not a delivery;
    what came before it has been posted.
    """
    signer = signer or Signer()
    number = 0
    for path in files:
        for delivery in deliveries(path, received_ms):
            sent = signer.record(delivery)
            producer.send(WEBHOOKS, sent.key, sent.value, sent.headers)
            number += 1
    return number


def deliveries(path: Path, received_ms: int | None = None) -> Iterator[Delivery]:
    """The deliveries in one file. Raises :class:`ReplayError`."""
    now = int(time.time() * 1000) if received_ms is None else received_ms
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ReplayError(path, None, error.strerror or str(error)) from error
    # Windows tools write UTF-16; JSON's own rules tell which of the encodings it is.
    encoding = json.detect_encoding(data)
    try:
        text = data.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeDecodeError as error:
        named = encoding.removesuffix("-sig").upper()
        raise ReplayError(path, None, f"not {named}: {error}") from error
    text = text.removeprefix("\ufeff")
    if path.suffix.lower() in _LINES:
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield from _all(path, number, line, now)
    else:
        yield from _all(path, None, text, now)


def _all(path: Path, line: int | None, text: str, now: int) -> Iterator[Delivery]:
    """The delivery or deliveries of one JSON text."""
    found = _decoded(path, line, text)
    parts: list[msgspec.Raw] | None = None
    if isinstance(found, list):
        parts = msgspec.json.decode(text, type=list[msgspec.Raw])
    elif isinstance(found, dict) and isinstance(found.get("jobs"), list):
        parts = msgspec.json.decode(text, type=_Jobs).jobs
    if parts is None:
        yield _delivery(path, line, "", found, text, now)
        return
    for number, raw in enumerate(parts, start=1):
        part = bytes(raw).decode()
        yield _delivery(path, line, f"item {number}: ", _decoded(path, line, part), part, now)


class _Jobs(msgspec.Struct):
    """A list of jobs as the REST API returns it."""

    jobs: list[msgspec.Raw]


def _decoded(path: Path, line: int | None, text: str) -> Any:
    try:
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError:
            return msgspec.json.decode(mend_surrogates(text.encode()))
    except (msgspec.DecodeError, UnicodeError) as error:
        hint = ""
        if line is None and text.strip().count("\n"):
            hint = " (one delivery a line? then name the file .jsonl)"
        raise ReplayError(path, line, f"not JSON: {error}{hint}") from error


def _delivery(
    path: Path, line: int | None, item: str, found: object, text: str, now: int
) -> Delivery:
    if not isinstance(found, dict):
        raise ReplayError(
            path, line, f"{item}a delivery is an object, not a {type(found).__name__}"
        )
    headers, payload, body = _open(path, line, item, found, text)
    provider, event = _event(path, line, item, headers, body)
    subject = body if event == API_JOB else body.get(event)
    digest = blake2b(text.encode("utf-8", "replace"), digest_size=12).hexdigest()
    number = subject.get("id") if isinstance(subject, dict) else None
    urls = [
        part.get("html_url") for part in (subject, body.get("repository")) if isinstance(part, dict)
    ]
    form = FORMS[provider]
    github = provider == "github"
    host = github_host(GITHUB_HOST, headers, urls) if github else form.host(headers)
    make_key = run_key if event == "workflow_run" else job_key
    # A body that names no job still goes to the topic: refusing it is the pipeline's business.
    key = f"{provider}:{host}:unknown"
    if isinstance(number, int):
        key = make_key(provider, host, number)
    try:
        return Delivery(
            id=headers.get(form.delivery) or f"replay-{digest}",
            kind=f"{provider}.{event}",
            source="replay",
            occurred_at=_occurred(subject, now),
            received_at=now,
            key=key,
            host=host,
            headers={n: value for n, value in headers.items() if n not in CREDENTIALS},
            payload=payload,
        )
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part)
        raise ReplayError(path, line, f"{item}{place}: {first['msg']}") from error


def _open(
    path: Path, line: int | None, item: str, found: dict[str, Any], text: str
) -> tuple[dict[str, str], str, dict[str, Any]]:
    """Headers, body as text and as object, of an envelope or of a bare body."""
    if any(event in found for event in EVENTS) or _is_ping(found) or _is_api_job(found):
        return {}, text, found
    request = found.get("request")
    envelope = request if isinstance(request, dict) else found
    payload = envelope.get("payload", envelope.get("body"))
    if payload is None:
        raise ReplayError(
            path,
            line,
            f"{item}neither a workflow_job or workflow_run body nor an envelope with a payload, "
            "nor a job of the REST API",
        )
    raw = envelope.get("headers") or {}
    if not isinstance(raw, dict):
        raise ReplayError(path, line, f"{item}headers: must be an object of names and values")
    headers = {str(name).lower(): str(value) for name, value in raw.items() if value is not None}
    # GitHub's delivery API keeps these two beside the request.
    for header, name in (("x-github-delivery", "guid"), ("x-github-event", "event")):
        if header not in headers and isinstance(found.get(name), str):
            headers[header] = found[name]
    if isinstance(payload, str):
        body = _payload(path, line, item, payload)
        text = payload
    else:
        body = payload
        text = msgspec.json.encode(payload).decode()
    if body is payload or "form-urlencoded" in headers.get("content-type", ""):
        # Not the bytes that were signed.
        for provider in PROVIDERS.values():
            for header in provider.signatures:
                headers.pop(header, None)
    if not isinstance(body, dict):
        raise ReplayError(path, line, f"{item}payload: a body is an object")
    return headers, text, body


def _payload(path: Path, line: int | None, item: str, payload: str) -> Any:
    try:
        return _decoded(path, line, payload)
    except ReplayError as error:
        what = str(error).partition("not JSON: ")[2]
        raise ReplayError(path, line, f"{item}payload: not JSON: {what}") from error


def _event(
    path: Path, line: int | None, item: str, headers: dict[str, str], body: dict[str, Any]
) -> tuple[str, str]:
    """The provider and the event."""
    known = form_of(headers)
    if known is not None:
        form, header = known
        provider, named = PROVIDERS[form.provider], form.named(headers[header])
        if named in provider.events or named in provider.other_events:
            return provider.name, named
        ours = EVENTS if provider.name == "github" else provider.events
        raise ReplayError(
            path,
            line,
            f"{item}a {named} event is none that {provider.name} has: {', '.join(ours)} ...",
        )
    return "github", _githubs(path, line, item, body)


def _githubs(path: Path, line: int | None, item: str, body: dict[str, Any]) -> str:
    """The event of a body that comes without headers, from its shape or the file's name."""
    # A workflow_job body never has a workflow_run beside the job; GitHub's check events have both.
    for event in EVENTS:
        if event in body:
            return event
    if _is_ping(body):
        return "ping"
    if _is_api_job(body):
        return API_JOB
    for event in EVENTS:
        if path.name.startswith(f"{event}."):
            return event
    raise ReplayError(
        path, line, f"{item}cannot tell the event: no header, no known body, no file name"
    )


def _is_ping(body: dict[str, Any]) -> bool:
    return "zen" in body and "hook_id" in body


def _is_api_job(body: dict[str, Any]) -> bool:
    """A job as the REST API returns it: what a webhook has inside ``workflow_job``."""
    return {"id", "run_id", "status"} <= body.keys() and "payload" not in body


def _occurred(subject: object, now: int) -> int:
    """The latest time in the body that is not after ``now``: when the event was made, roughly.

    Only used when the delivery id carries no time.
    """
    times = [now] if not isinstance(subject, dict) else []
    if isinstance(subject, dict):
        for name in ("created_at", "started_at", "completed_at", "run_started_at", "updated_at"):
            value = subject.get(name)
            if not isinstance(value, str):
                continue
            try:
                moment = datetime.fromisoformat(value)
                moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
                ms = int(moment.timestamp() * 1000)
            except (ValueError, OverflowError):
                continue
            if EARLIEST_MS <= ms <= min(now, LATEST_MS):
                times.append(ms)
    return max(times, default=now)
