"""Who else is in the group, and answers gathered from all of them.

Every worker knows from the last rebalance which worker owns which partitions: Faust's assignor
hands the table distribution to all members, by the URL each one announces (``web_host`` and
``web_port``). A question goes to each worker with the partitions it owns, so nothing is counted
twice; what did not answer is named in ``incomplete``, so a list is never silently partial.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import msgspec

from pipeline.faust_safe.outbox import partition_of
from pipeline.web.ports import Membership

#: How long a peer may be silent, and how long its whole answer may take. Seconds.
PEER_SILENT_S: Final = 3.0
PEER_TIMEOUT_S: Final = 10.0
#: Most bytes taken from a peer. A page of 1,000 jobs or windows is some megabytes.
PEER_BYTES: Final = 64 << 20
#: Connections to all peers together, and to one.
CONNECTIONS: Final = 32
PER_PEER: Final = 4

Local = Callable[[list[int]], Awaitable[dict[str, Any]]]


@dataclass(slots=True)
class Gathered:
    """What the workers said, and what is missing."""

    parts: list[dict[str, Any]] = field(default_factory=list)
    #: ``{"reason", "partitions", "worker"}`` for each gap; ``worker`` may be None.
    incomplete: list[dict[str, Any]] = field(default_factory=list)


class PeerError(RuntimeError):
    """A peer did not answer as it should; says why."""


class Group:
    """The workers of the group as this one knows them."""

    def __init__(self, worker: Membership) -> None:
        self._worker = worker
        self._session: aiohttp.ClientSession | None = None

    @property
    def me(self) -> str:
        """The URL this worker announces."""
        return self._worker.url.rstrip("/")

    def members(self) -> dict[str, list[int]]:
        """URL and partitions of every worker, this one included, as of the last rebalance."""
        known = {
            url.rstrip("/"): sorted(partitions)
            for url, partitions in self._worker.members().items()
        }
        known.setdefault(self.me, [])
        return known

    def owner(self, key: str) -> tuple[int, str | None]:
        """Partition of a job key and the URL of its owner, ``None`` when it has none now."""
        partition = partition_of(key.encode(), self._worker.settings.partitions)
        for url, partitions in self.members().items():
            if partition in partitions:
                return partition, url
        return partition, None

    async def gather(
        self, path: str, query: Mapping[str, str], local: Local, body: Any = None
    ) -> Gathered:
        """Ask every worker for its part. ``local`` answers for this one. What is too long for a
        URL goes into ``body``."""
        result = Gathered()
        members = self.members()

        async def one(url: str, partitions: list[int]) -> None:
            try:
                if url == self.me:
                    part = await local(partitions)
                else:
                    asked = {**query, "partitions": ",".join(map(str, partitions))}
                    part = await self.ask(url, path, asked, body)
                    part = part if isinstance(part.get("partitions"), list) else {"partitions": []}
            except PeerError as error:
                result.incomplete.append(_gap(str(error), partitions, url))
                return
            result.parts.append({**part, "worker": url})
            missing = sorted(set(partitions) - set(part["partitions"]))
            if missing:
                why = "has not loaded its jobs yet (rebalancing or recovering)"
                result.incomplete.append(_gap(f"worker {url} {why}", missing, url))

        await asyncio.gather(*(one(url, owned) for url, owned in sorted(members.items())))
        owned = {partition for partitions in members.values() for partition in partitions}
        orphaned = sorted(set(range(self._worker.settings.partitions)) - owned)
        if orphaned:
            why = "no worker is known to own these partitions: the group is (re)joining, or two "
            why += "workers announce the same web_host and web_port"
            result.incomplete.append(_gap(why, orphaned, None))
        return result

    async def ask(
        self, url: str, path: str, query: Mapping[str, str], body: Any = None
    ) -> dict[str, Any]:
        """A part from a peer: GET, or POST with a body. Raises PeerError."""
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS, limit_per_host=PER_PEER),
                timeout=aiohttp.ClientTimeout(
                    total=PEER_TIMEOUT_S, sock_connect=PEER_SILENT_S, sock_read=PEER_SILENT_S
                ),
                trust_env=False,
            )
        began = time.monotonic()
        try:
            async with self._session.request(
                "GET" if body is None else "POST",
                url + path,
                params=query,
                data=None if body is None else msgspec.json.encode(body),
                allow_redirects=False,
            ) as response:
                if response.status not in (200, 404, 503):
                    raise PeerError(f"worker {url} answered {response.status}")
                answer = msgspec.json.decode(await _whole(response, url))
        except TimeoutError:
            waited = time.monotonic() - began
            raise PeerError(f"worker {url} did not answer within {waited:.1f} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise PeerError(f"worker {url} did not answer: {error}") from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise PeerError(f"worker {url} did not answer with JSON: is it a worker?") from None
        if not isinstance(answer, dict):
            raise PeerError(f"worker {url} did not answer with an object: is it a worker?")
        return answer

    async def close(self) -> None:
        """Close connections to peers."""
        if self._session is not None:
            await self._session.close()


async def _whole(response: aiohttp.ClientResponse, url: str) -> bytes:
    """The whole body. A read of so many bytes would return the first ones that have come."""
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > PEER_BYTES:
            raise PeerError(f"worker {url} answered with more than {PEER_BYTES >> 20} MiB")
    return bytes(body)


def _gap(reason: str, partitions: list[int], worker: str | None) -> dict[str, Any]:
    return {"reason": reason, "partitions": partitions, "worker": worker}
