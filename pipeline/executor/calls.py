"""HTTP calls with limits: on time, on what is read of an answer, and never redirected.

A redirect is an answer like any other: a signed body belongs to the address that was configured.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import httpx

#: Most bytes of an answer that are read, unless told.
ANSWER_BYTES: Final = 64 << 10


class Unreached(Exception):
    """There was no answer. ``reason`` is ``refused``, ``timeout`` or ``broken``.

    ``sent`` says whether the other side may have got the request all the same.
    """

    def __init__(self, reason: str, sent: bool, told: str) -> None:
        super().__init__(f"{reason}: {told}")
        self.reason = reason
        self.sent = sent


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. Names of headers are lower-case."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    def retry_after_s(self) -> float | None:
        """What ``Retry-After`` asks for; None when it says nothing in seconds."""
        said = self.headers.get("retry-after", "").strip()
        return float(said) if said.isascii() and said.isdecimal() and len(said) < 7 else None


class Caller:
    """Makes calls, each on a connection of its own. Safe from any thread."""

    def __init__(self, timeout_s: float = 10.0, most_bytes: int = ANSWER_BYTES) -> None:
        self._timeout_s = timeout_s
        self._most = most_bytes
        # A connection that is kept may be closed by the other side just when a request is sent;
        # nobody could tell then whether that has arrived.
        self._client = httpx.Client(
            timeout=timeout_s,
            follow_redirects=False,
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    def __call__(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | list[tuple[str, str]],
        body: bytes | None = None,
    ) -> Reply:
        """The answer, whatever its status. Raises :class:`Unreached` when there is none."""
        deadline = time.monotonic() + self._timeout_s
        try:
            request = self._client.build_request(method, url, headers=headers, content=body)
            reply = self._client.send(request, stream=True)
            try:
                found = b""
                for chunk in reply.iter_bytes():
                    found += chunk
                    if time.monotonic() > deadline:
                        raise Unreached("timeout", True, f"{url} does not end its answer")
                    if len(found) > self._most:
                        raise Unreached("broken", True, f"{url} answers {self._most} bytes or more")
                return Reply(reply.status_code, found, dict(reply.headers.items()))
            finally:
                reply.close()
        except (httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise Unreached("timeout", False, _told(error)) from None
        except httpx.ConnectError as error:
            raise Unreached("refused", False, _told(error)) from None
        except httpx.TimeoutException as error:
            raise Unreached("timeout", True, _told(error)) from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise Unreached("broken", True, _told(error)) from None


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
