"""Answers as HTTP.

aiohttp takes some 15 us to make a response and its header, a tenth of what a delivery costs in all.
Nearly all answers are the same few, so their bytes are made once a second, for the date in them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final, cast

from aiohttp import HttpVersion11, web

from pipeline.gateway.answers import HOOK_ANSWERS, Answer

#: Of every answer. aiohttp would name versions.
HEADERS: Final = {"Server": "runnerstream", "Content-Type": "application/json"}


class Ready:
    """An answer to a POST of HTTP/1.1 whose connection goes on, to be given any number of times.

    It is what aiohttp asks of a response: it is prepared for a request, and then it ends.
    """

    #: Whether the connection goes on.
    keep_alive: Final = True

    def __init__(self, answer: Answer) -> None:
        body = _body(answer)
        told = HEADERS | _more_headers(answer) | {"Content-Length": str(len(body))}
        lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in told.items()]
        self._head = "\r\n".join(lines).encode() + b"\r\nDate: "
        self._rest = b"\r\n\r\n" + body
        self._second = 0
        self._bytes = b""

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write it. Raises ConnectionResetError when nobody is there any more."""
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the sender has gone")
        now = int(time.time())
        if now != self._second:
            self._bytes = self._head + formatdate(now, usegmt=True).encode() + self._rest
            self._second = now
        transport.write(self._bytes)
        if transport.get_write_buffer_size():
            # Who asks on and reads no answers waits, instead of filling our memory with them.
            await request.writer.drain()

    async def write_eof(self) -> None:
        """It has been written whole."""


def response(
    answer: Answer,
    more: Mapping[str, Any] | None = None,
    request: web.BaseRequest | None = None,
    last: bool = False,
    **headers: str,
) -> web.StreamResponse:
    """The answer, with what is told beside it, to this request; ``last``: the connection ends."""
    if (
        not more
        and not last
        and request is not None
        and request.method == "POST"
        and request.version == HttpVersion11
        and request.keep_alive
        and (ready := _READY.get(answer)) is not None
    ):
        return cast("web.StreamResponse", ready)
    told = dict(more or {})
    if "allow" in told:
        headers["Allow"] = told.pop("allow")
    made = web.Response(
        status=answer.status,
        body=_body(answer, **told),
        headers=HEADERS | _more_headers(answer) | headers,
    )
    if last or answer.closes:
        made.force_close()
    return made


def _more_headers(answer: Answer) -> dict[str, str]:
    return {"Retry-After": str(answer.retry_after_s)} if answer.retry_after_s else {}


def _body(answer: Answer, **more: Any) -> bytes:
    said = {"outcome": answer.outcome.value, "message": answer.says, **more}
    return json.dumps(said).encode() + b"\n"


_READY: Final = {answer: Ready(answer) for answer in HOOK_ANSWERS if not answer.closes}
