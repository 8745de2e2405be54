"""Posts a delivery to the target, once, within limits.

A redirect is an answer like any other: what was signed for one address is not sent to another.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import aiohttp
from yarl import URL

from pipeline.relay.pace import Answer, judge
from pipeline.relay.screen import Sending

#: How much of an answer is read, and for how long, so that its connection can be used again.
_ANSWER_BYTES: Final = 64 << 10
_ANSWER_S: Final = 1.0
#: A body up to here is written at once.
_AT_ONCE_BYTES: Final = 512 << 10
#: How long a connection may take. Seconds.
_CONNECT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of an attempt.

    Attributes:
        told: in a word, for people: ``http_503``, ``timeout``.
        after_s: what the target asked for with Retry-After.
    """

    answer: Answer
    told: str
    after_s: float | None = None


class NotNow(Exception):
    """Nothing was sent, because nothing may be."""


class Target:
    """One address. Of one event loop, in which it is made.

    Args:
        refusals: statuses by which it refuses a delivery for good.
        at_once: connections.
        may_send: asked just before a delivery is sent, once there is a connection.
    """

    def __init__(
        self,
        url: str,
        timeout_s: float,
        refusals: Collection[int],
        at_once: int,
        may_send: Callable[[], bool],
    ) -> None:
        self._url = URL(url, encoded=True)
        self._refusals = refusals
        self._may_send = may_send
        trace = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(self._connected)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=at_once),
            timeout=aiohttp.ClientTimeout(
                total=timeout_s, sock_connect=min(_CONNECT_S, timeout_s)
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trace_configs=[trace],
            # Only what the provider sent.
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        )  # fmt: skip

    async def _connected(self, *_: object) -> None:
        # A connection takes its time, in which this process may have stood still.
        if not self._may_send():
            raise NotNow

    async def close(self) -> None:
        """Let go of its connections."""
        await self._session.close()

    async def post(self, sending: Sending) -> Reply:
        """Post it; what the target answers, or that it does not. Raises :class:`NotNow`."""
        if not self._may_send():
            raise NotNow
        try:
            async with self._session.post(
                self._url,
                data=_data(sending.body),
                headers=sending.headers,
                allow_redirects=False,
            ) as response:
                await _rest(response)
                status = response.status
                after_s = _seconds(response.headers.get("Retry-After", ""))
                return Reply(judge(status, self._refusals), f"http_{status}", after_s)
        except aiohttp.ClientConnectorError as error:
            return Reply(Answer.UNREACHABLE, f"unreachable ({_told(error)})")
        except aiohttp.ConnectionTimeoutError:
            return Reply(Answer.UNREACHABLE, "unreachable (no connection in time)")
        except TimeoutError:
            return Reply(Answer.TIMEOUT, "timeout")
        except (aiohttp.ClientError, OSError, ValueError, RuntimeError) as error:
            # RuntimeError: uvloop's word for a connection that was just reset.
            return Reply(Answer.BROKEN, f"broken ({_told(error)})")


def _data(body: bytes) -> bytes | io.BytesIO:
    # aiohttp writes bytes at once, and warns of it where there are many.
    return body if len(body) <= _AT_ONCE_BYTES else io.BytesIO(body)


async def _rest(response: aiohttp.ClientResponse) -> None:
    """Read the body, if it is short and comes at once. Its status says all."""
    left = _ANSWER_BYTES
    with suppress(TimeoutError, aiohttp.ClientError):
        async with asyncio.timeout(_ANSWER_S):
            while left > 0 and (piece := await response.content.readany()):
                left -= len(piece)


def _seconds(said: str) -> float | None:
    """``Retry-After`` in seconds; None for a date, or for what is none."""
    said = said.strip()
    return float(said) if said.isascii() and said.isdecimal() and len(said) < 7 else None


def _told(error: BaseException) -> str:
    cause = getattr(error, "os_error", None) or error
    return type(cause).__name__
