"""Reads and judges a request: from its header to its answer.

The order: path, method, framing, content type, whether it is signed at all; then the body, within
its time and size; then its signature, over the bytes as they came. Only what is authentic is looked
into, and only a record that Kafka has is answered 2xx.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import xxhash
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from pipeline.door import Door
from pipeline.gateway import answers
from pipeline.gateway.access import AccessLog
from pipeline.gateway.answers import Answer, Outcome
from pipeline.gateway.keyring import Keyring
from pipeline.gateway.metrics import NONE, OTHER, GatewayMetrics
from pipeline.gateway.replies import HEADERS, response
from pipeline.gateway.writer import Full, Headers, Unavailable, Writer
from pipeline.providers.base import Glance, Provider
from pipeline.providers.registry import PROVIDERS
from topics import bridge
from topics.models import Unreadable

#: Where webhooks are posted, before the provider's name.
HOOKS: Final = "/webhooks/"
#: Largest body: GitHub sends at most 25 MB.
MAX_BODY: Final = 25 << 20
#: A body up to here is read whatever else is held, so that large ones never keep out ordinary ones.
SMALL_BODY: Final = 64 << 10
#: Bodies above this are checked and looked into by another thread.
LARGE_BODY: Final = 256 << 10
#: How far a signed time may be from ours, as Standard Webhooks say: else what was seen once could
#: be sent again years later.
FRESH_MS: Final = 300_000
#: Deliveries remembered, to count those that come again. Some 100 bytes each.
REMEMBERED: Final = 50_000
#: Headers of any provider that are kept, beside its own.
_KEPT: Final = ("content-type", "user-agent", bridge.RELAYED_BY)
_FORM: Final = "application/x-www-form-urlencoded"
#: Names of headers as they are sent, with what becomes of them, by provider; how many of each are
#: remembered, and the longest.
_NAMES: Final[dict[str, dict[bytes, tuple[str, bool]]]] = {}
_NAMES_KNOWN: Final = 100
_LONGEST_NAME: Final = 60
#: How often connections are looked at in the end. Seconds.
_LOOK_S: Final = 0.02

log = logging.getLogger(__name__)

Page = Callable[[], tuple[int, bytes]]


class Refused(Exception):
    """The request ends here."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer


@dataclass(slots=True)
class About:
    """What is known of a request so far, for metrics and log. Nothing of it is as it was sent,
    but the delivery's id once it is authentic."""

    provider: str = NONE
    action: str = NONE
    size: int = 0
    delivery: str = ""
    #: What is told beside the answer.
    more: Mapping[str, Any] = field(default_factory=dict)


class Held:
    """Bytes of bodies held by all requests, up to a bound."""

    def __init__(self, most: int) -> None:
        self.bytes = 0
        self._most = most

    def take(self, piece: int, so_far: int) -> bool:
        """Hold a piece more of a body of which so much is held; False when there is no room."""
        if so_far + piece > SMALL_BODY and self.bytes + piece > self._most:
            return False
        self.bytes += piece
        return True

    def give(self, size: int) -> None:
        """Hold it no longer."""
        self.bytes -= size


class Protocol(web.RequestHandler):
    """aiohttp's, whose answers to what is no HTTP would repeat a part of it."""

    __slots__ = ("refused",)

    #: Counts an answer that no handler gave; set by who makes it.
    refused: Callable[[], None]

    @property
    def busy(self) -> bool:
        """Whether a request is being answered, or waits for it."""
        return self._current_request is not None or bool(self._messages)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Our answer for a request that could not be parsed."""
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        self.refused()
        return response(answers.BAD_FRAMING)


class Receiver:
    """The handler of all requests.

    Args:
        pages: what else is answered, by path: GET only.
    """

    def __init__(
        self,
        keyring: Keyring,
        writer: Writer,
        metrics: GatewayMetrics,
        door: Door,
        held: Held,
        body_time_s: float,
        pages: Mapping[str, Page],
        access: AccessLog,
    ) -> None:
        self._keyring = keyring
        self._writer = writer
        self._metrics = metrics
        self._door = door
        self._held = held
        self._body_time_s = body_time_s
        self._pages = pages
        self._access = access
        #: Whether each answer is the last one on its connection.
        self.ending = False
        #: Provider, id and digest: in two halves, of which the older is forgotten at once.
        self._seen: set[tuple[str, str, int]] = set()
        self._seen_before: set[tuple[str, str, int]] = set()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request, and count and log how."""
        began = time.monotonic()
        page = self._pages.get(request.path)
        if page is not None:
            return self._page(request, page)
        about = About()
        try:
            answer = await self._answer(request, about)
        except Refused as refused:
            answer = refused.answer
        except (ConnectionError, asyncio.CancelledError):
            self._metrics.broken_off.inc()
            raise
        except Exception:
            log.exception("a delivery could not be handled")
            answer = answers.FAULT
        finally:
            self._door.answered(request.protocol)
        self._count(request.remote, about, answer, time.monotonic() - began)
        return response(answer, about.more, request, last=self.ending)

    def refused(self) -> None:
        """Count a request that could not even be parsed."""
        self._count(None, About(), answers.BAD_FRAMING, 0.0)

    def _page(self, request: web.BaseRequest, page: Page) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD"):
            return response(answers.NOT_ALLOWED, allow="GET, HEAD")
        status, body = page()
        return web.Response(status=status, body=body, headers=HEADERS)

    async def _answer(self, request: web.BaseRequest, about: About) -> Answer:
        path = request.path
        provider = PROVIDERS.get(path.removeprefix(HOOKS)) if path.startswith(HOOKS) else None
        if provider is None:
            return answers.NOT_FOUND
        about.provider = provider.name
        if request.method != "POST":
            about.more = {"allow": "POST"}
            return answers.NOT_ALLOWED
        at_ms = int(time.time() * 1000)
        headers, kept = _headers(provider, request)
        _check(provider, request, headers)
        body = await self._body(request, headers)
        about.size = len(body)
        # From here on the bytes are given back by whoever is done with them last.
        given = False

        def settled() -> None:
            self._held.give(about.size)

        try:
            self._door.asks(request.protocol)
            work = self._judge(provider, headers, body, at_ms)
            glance = await (asyncio.to_thread(work) if about.size > LARGE_BODY else _now(work))
            self._authentic(about, at_ms)
            about.delivery = _delivery(provider, headers)
            if glance is None:
                about.action = OTHER
                greeting = provider.setup(_event(provider, headers), body)
                about.more = {"events": greeting} if greeting else {}
                return answers.IGNORED
            about.action = glance.action
            key = glance.key or about.delivery or provider.name
            given = True
            await self._writer.write(key.encode(), body, kept, at_ms, settled)
        except Full:
            return answers.BUSY
        except Unavailable:
            return answers.UNAVAILABLE
        finally:
            if not given:
                settled()
        if glance.malformed:
            return answers.ODD
        return answers.DUPLICATE if self._came_before(about, body) else answers.ACCEPTED

    def _judge(
        self, provider: Provider, headers: Mapping[str, str], body: bytes, at_ms: int
    ) -> Callable[[], Glance | None]:
        """What looks at a body: is it authentic, and what is it about? None: about no job. Raises
        :class:`Refused`. ``at_ms``: when it came."""

        def work() -> Glance | None:
            secrets = self._keyring.of(provider, headers, body)
            try:
                if not secrets:
                    raise Refused(answers.WRONG)
                provider.verify(headers, body, secrets)
            except Unreadable:
                raise Refused(answers.WRONG) from None
            signed_at = provider.signed_at(headers)
            if signed_at is not None and abs(at_ms - signed_at) > FRESH_MS:
                raise Refused(answers.STALE)
            event = _event(provider, headers)
            if event in provider.other_events:
                return None
            if event not in provider.events or event in bridge.FORMS[provider.name].asked:
                return Glance(malformed=True)
            payload = body
            kind = headers.get("content-type", "")
            if kind.lower().startswith(_FORM):
                try:
                    payload = bridge.payload_of(kind, body).encode("utf-8", "surrogatepass")
                except Unreadable:
                    return Glance(malformed=True)
            return provider.glance(event, headers, payload)

        return work

    async def _body(self, request: web.BaseRequest, headers: Mapping[str, str]) -> bytes:
        """The body, held. Raises :class:`Refused`, and then nothing is held."""
        if self._writer.full:
            raise Refused(answers.BUSY)
        if headers.get("expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        content = request.content
        whole = content.is_eof() and content.exception() is None
        if whole and content.total_bytes <= SMALL_BODY:
            # It is here already, as most are.
            body: bytes = content.read_nowait()
            self._held.take(len(body), 0)
            return body
        self._door.sends(request.protocol)
        pieces: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._body_time_s):
                while piece := await content.readany():
                    if size + len(piece) > MAX_BODY:
                        raise Refused(answers.TOO_LARGE)
                    if not self._held.take(len(piece), size):
                        raise Refused(answers.BUSY)
                    size += len(piece)
                    pieces.append(piece)
        except BaseException as error:
            self._held.give(size)
            if isinstance(error, TimeoutError):
                raise Refused(answers.SLOW) from None
            if isinstance(error, (web.RequestPayloadError, HttpProcessingError)):
                raise Refused(answers.BAD_FRAMING) from None
            raise
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _authentic(self, about: About, at_ms: int) -> None:
        self._metrics.authentic(about.provider, about.size, at_ms / 1000)

    def _came_before(self, about: About, body: bytes) -> bool:
        """Whether Kafka had it from this process already. It is marked only once Kafka has it."""
        what = (about.provider, about.delivery, xxhash.xxh3_64_intdigest(body))
        if what in self._seen or what in self._seen_before:
            return True
        if len(self._seen) >= REMEMBERED // 2:
            self._seen_before, self._seen = self._seen, set()
        self._seen.add(what)
        return False

    def _count(self, remote: str | None, about: About, answer: Answer, seconds: float) -> None:
        self._metrics.answered(about.provider, about.action, answer.outcome, seconds)
        self._access.add(
            time.time(),
            {
                "provider": about.provider,
                "status": answer.status,
                "outcome": answer.outcome.value,
                "action": about.action,
                "bytes": about.size,
                "ms": round(seconds * 1000, 1),
                "from": remote or "-",
                "delivery": _shown(about.delivery),
            },
        )


async def _now(work: Callable[[], Glance | None]) -> Glance | None:
    return work()


def _event(provider: Provider, headers: Mapping[str, str]) -> str:
    """The event, by the name that it has in kinds; empty when no header tells."""
    form = bridge.FORMS[provider.name]
    name = form.header_in(headers)
    return "" if name is None else form.named(headers[name])


def _delivery(provider: Provider, headers: Mapping[str, str]) -> str:
    """The delivery's id; empty when no header tells."""
    form = bridge.FORMS[provider.name]
    return form.delivery_in(headers, form.header_in(headers) or form.event)


def _headers(provider: Provider, request: web.BaseRequest) -> tuple[dict[str, str], Headers]:
    """All headers, and those of the record as they came. Names are lower-case. Raises
    :class:`Refused` when one that counts stands there twice: which of them is meant?"""
    found: dict[str, str] = {}
    kept: list[tuple[str, bytes]] = []
    known = _NAMES.setdefault(provider.name, {})
    for raw_name, value in request.raw_headers:
        name, keep = known.get(raw_name) or _name(provider, raw_name)
        if keep:
            if name in found:
                raise Refused(answers.NO_EVENT)
            kept.append((name, value))
        # As workers read them.
        found[name] = value.decode("utf-8", "replace")
    return found, kept


def _name(provider: Provider, raw: bytes) -> tuple[str, bool]:
    """A header's name, lower-case, and whether it is kept; remembered, up to a bound."""
    name = raw.decode("latin-1").lower()
    found = name, name.startswith(provider.kept_headers) or name in _KEPT
    known = _NAMES[provider.name]
    if len(known) < _NAMES_KNOWN and len(raw) <= _LONGEST_NAME:
        known[raw] = found
    return found


def _check(provider: Provider, request: web.BaseRequest, headers: Mapping[str, str]) -> None:
    """Refuse what can be refused without its body."""
    if request.content_length is None and "transfer-encoding" not in headers:
        raise Refused(answers.NO_LENGTH)
    if request.content_length is not None and request.content_length > MAX_BODY:
        raise Refused(answers.TOO_LARGE)
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    coded = headers.get("content-encoding", "identity").strip().lower() not in ("", "identity")
    if kind not in provider.content_types or coded:
        raise Refused(answers.BAD_TYPE)
    if not provider.signed(headers):
        raise Refused(answers.UNSIGNED)
    if not _event(provider, headers):
        raise Refused(answers.NO_EVENT)


def _shown(delivery: str) -> str:
    """A delivery's id in a log line: it is the sender's to choose."""
    shown = delivery[:64]
    return shown if shown and shown.replace("-", "").isalnum() and shown.isascii() else "-"


Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class HookServer(web.Server):
    """aiohttp's server with our protocol."""

    def __init__(self, receiver: Receiver, **options: Any) -> None:
        super().__init__(receiver.handle, **options)
        self._receiver = receiver

    def __call__(self) -> Protocol:
        """A connection."""
        made = Protocol(self, loop=self._loop, **self._kwargs)
        made.refused = self._receiver.refused
        return made

    async def finish(self, patience_s: float) -> None:
        """Answer what has begun, and close each connection once it asks nothing.

        aiohttp's own end drops what comes of a body that is still under way, and waits for it.
        """
        self._receiver.ending = True
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while connections := self.connections:
                    for each in connections:
                        if isinstance(each, Protocol) and not each.busy:
                            each.force_close()
                    await asyncio.sleep(_LOOK_S)


__all__ = ["Held", "HookServer", "Outcome", "Receiver"]
