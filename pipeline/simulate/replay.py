"""Posting recorded deliveries: from files to ``runners.webhooks``.

A file holds one delivery (``.json``) or one a line (``.jsonl``, ``.ndjson``). A delivery is

* a body as GitHub sent it. Its event is seen from its shape (``workflow_job``, ``workflow_run``)
  or from the file name (``workflow_job.queued.json``);
* or an envelope, as GitHub's redelivery API and most recorders write it:
  ``{"headers": {...}, "payload": {...} or "..."}``; ``body`` and ``request`` are understood for
  ``payload`` and for the envelope's own wrapper, and header names in any case.

A body without a delivery id gets one made from its content, so replaying a file twice says
nothing new.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
from pydantic import ValidationError

from topics.models import EARLIEST_MS, LATEST_MS, Delivery, Record, job_key, run_key

EVENTS: Final = ("workflow_job", "workflow_run")
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

    def post(self, record: Record) -> None:
        """Take one record."""
        ...


def replay(files: Iterable[Path], producer: Poster, *, received_ms: int | None = None) -> int:
    """Post every delivery in the files, in order; returns how many.

    ``received_ms`` stands for the time of arrival, by default now. Raises :class:`ReplayError`
    at the first thing that is not a delivery; what came before it has been posted.
    """
    number = 0
    for path in files:
        for delivery in deliveries(path, received_ms):
            producer.post(delivery)
            number += 1
    return number


def deliveries(path: Path, received_ms: int | None = None) -> Iterator[Delivery]:
    """The deliveries in one file. Raises :class:`ReplayError`."""
    now = int(time.time() * 1000) if received_ms is None else received_ms
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ReplayError(path, None, error.strerror or str(error)) from error
    data = data.removeprefix(b"\xef\xbb\xbf")
    if path.suffix.lower() in _LINES:
        for number, line in enumerate(data.split(b"\n"), start=1):
            if line.strip():
                yield _delivery(path, number, line, now)
    else:
        yield _delivery(path, None, data, now)


def _delivery(path: Path, line: int | None, data: bytes, now: int) -> Delivery:
    try:
        found = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        hint = ""
        if line is None and data.strip().count(b"\n"):
            hint = " (one delivery a line? then name the file .jsonl)"
        raise ReplayError(path, line, f"not JSON: {error}{hint}") from error
    if not isinstance(found, dict):
        raise ReplayError(path, line, f"a delivery is an object, not a {type(found).__name__}")
    headers, text, body = _open(path, line, found, data)
    event = _event(path, line, headers, body)
    subject = body.get(event)
    number = subject.get("id") if isinstance(subject, dict) else None
    host = headers.get("x-github-enterprise-host") or "github.com"
    make_key = job_key if event == "workflow_job" else run_key
    # A body that names no job still goes to the topic: refusing it is the pipeline's business.
    key = make_key("github", host, number) if isinstance(number, int) else f"github:{host}:unknown"
    guid = headers.get("x-github-delivery") or f"replay-{blake2b(data, digest_size=12).hexdigest()}"
    try:
        return Delivery(
            id=guid,
            kind=f"github.{event}",
            source="replay",
            occurred_at=_occurred(subject, now),
            received_at=now,
            key=key,
            host=host,
            headers={name: value for name, value in headers.items() if name in _KEPT_HEADERS},
            payload=text,
        )
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ReplayError(path, line, f"{place}: {first['msg']}") from error


_KEPT_HEADERS: Final = frozenset(
    {
        "x-github-event",
        "x-github-delivery",
        "x-github-hook-id",
        "x-github-hook-installation-target-id",
        "x-github-hook-installation-target-type",
        "x-github-enterprise-host",
        "x-github-enterprise-version",
    }
)


def _open(
    path: Path, line: int | None, found: dict[str, Any], data: bytes
) -> tuple[dict[str, str], str, dict[str, Any]]:
    """Headers, body as text and as object, of an envelope or of a bare body."""
    if any(event in found for event in EVENTS):
        return {}, _text(path, line, data), found
    request = found.get("request")
    envelope = request if isinstance(request, dict) else found
    payload = envelope.get("payload", envelope.get("body"))
    if payload is None:
        raise ReplayError(
            path, line, "neither a workflow_job or workflow_run body nor an envelope with a payload"
        )
    raw = envelope.get("headers") or {}
    if not isinstance(raw, dict):
        raise ReplayError(path, line, "headers: must be an object of names and values")
    headers = {str(name).lower(): str(value) for name, value in raw.items() if value is not None}
    # GitHub's delivery API keeps these two beside the request.
    for header, name in (("x-github-delivery", "guid"), ("x-github-event", "event")):
        if header not in headers and isinstance(found.get(name), str):
            headers[header] = found[name]
    if isinstance(payload, str):
        try:
            body = msgspec.json.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ReplayError(path, line, f"payload: not JSON: {error}") from error
        text = payload
    else:
        body = payload
        text = msgspec.json.encode(payload).decode()
    if not isinstance(body, dict):
        raise ReplayError(path, line, "payload: a body is an object")
    return headers, text, body


def _event(path: Path, line: int | None, headers: dict[str, str], body: dict[str, Any]) -> str:
    named = headers.get("x-github-event")
    if named is not None:
        if named in EVENTS:
            return named
        raise ReplayError(path, line, f"a {named} event is not one of {', '.join(EVENTS)}")
    # A workflow_job body never has a workflow_run beside the job; GitHub's check events have both.
    for event in EVENTS:
        if event in body:
            return event
    for event in EVENTS:
        if path.name.startswith(f"{event}."):
            return event
    raise ReplayError(path, line, "cannot tell the event: no header, no known body, no file name")


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
            except ValueError:
                continue
            ms = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
            if EARLIEST_MS <= ms <= min(now, LATEST_MS):
                times.append(ms)
    return max(times, default=now)


def _text(path: Path, line: int | None, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ReplayError(path, line, f"not UTF-8: {error}") from error
