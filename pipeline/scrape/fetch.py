"""Getting a page: one request, with bounds on its time and its size."""

from __future__ import annotations

import asyncio
import ssl
from enum import StrEnum
from typing import Final

import httpx

#: A page of a runner has some 30 kB.
MAX_PAGE_BYTES: Final = 2_000_000
#: A whole page must be here within this, however slowly it trickles. Seconds.
WHOLE_S: Final = 10.0
_HEADERS: Final = {
    "User-Agent": "runnerstream",
    "Accept": "text/plain;version=0.0.4",
    # What is small when packed may be large.
    "Accept-Encoding": "identity",
}


class Outcome(StrEnum):
    """What became of a look."""

    READ = "read"
    UNREACHABLE = "unreachable"
    #: It answered by another status than 200; redirects are not followed.
    REFUSED = "refused"
    TOO_LARGE = "too_large"
    TOO_SLOW = "too_slow"
    #: It is no page of a runner.
    ODD = "odd"


class Blind(Exception):
    """Nothing was seen."""

    def __init__(self, outcome: Outcome, why: str) -> None:
        super().__init__(why)
        self.outcome = outcome


class Fetch:
    """Gets pages, each over a connection of its own. Safe from several threads."""

    def __init__(self, whole_s: float = WHOLE_S, max_bytes: int = MAX_PAGE_BYTES) -> None:
        self._whole_s, self._max_bytes = whole_s, max_bytes
        # To make one takes longer than to get a page.
        self._trusted = ssl.create_default_context()

    def __call__(self, url: str) -> str:
        """The page's text. Raises :class:`Blind`."""
        try:
            # Whatever trickles, headers as well, ends in time: only asyncio ends it.
            body = asyncio.run(asyncio.wait_for(self._get(url), self._whole_s))
        except TimeoutError as error:
            raise Blind(Outcome.TOO_SLOW, f"it was not here within {self._whole_s:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise Blind(Outcome.UNREACHABLE, type(error).__name__) from error
        return body.decode("utf-8", "replace")

    async def _get(self, url: str) -> bytes:
        body = bytearray()
        async with (
            # What is scraped is near: a proxy for the world does not know it.
            httpx.AsyncClient(verify=self._trusted, trust_env=False, timeout=None) as client,
            client.stream("GET", url, headers=_HEADERS) as answer,
        ):
            if answer.status_code != 200:
                raise Blind(Outcome.REFUSED, f"it answered {answer.status_code}")
            async for part in answer.aiter_raw():
                body += part
                if len(body) > self._max_bytes:
                    raise Blind(Outcome.TOO_LARGE, f"it has more than {self._max_bytes:,} bytes")
        return bytes(body)
