"""The lists of deliveries of GitHub's hooks (docs.github.com, REST API for webhooks).

GitHub tries once, and keeps what it tried for 3 days (a GHES 7). The list has an entry for each
attempt, the newest first, with the GUID that all attempts of a delivery share; it pages by an
opaque cursor in the ``Link`` header. A redelivery is asked for by the id of any attempt, is taken
with 202, and appears as a further entry later. The list can be filtered by status, which would hide
that a delivery came in another attempt: so it is read whole.

Of an App the list is for the App itself, by its JWT; of a repository's or an organisation's hook
for who may administer it.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

from pipeline.providers.api import Detail
from pipeline.providers.calls import Calls, Failed
from pipeline.providers.deliveries import Asked, Attempt, Came, Page
from pipeline.providers.github_calls import GitHubCalls
from topics.envelope import EARLIEST_MS, LATEST_MS
from topics.keys import canonical_host

_NAME: Final = r"(?!\.+(?:/|:))[A-Za-z0-9._-]{1,100}"
_HOOK: Final = re.compile(rf"app|({_NAME}(?:/{_NAME})?):([1-9][0-9]{{0,18}})")
_PER_PAGE: Final = 100
_LONGEST_GUID: Final = 128
#: What stands where a status is when nothing was tried yet.
_WAITING: Final = frozenset({"pending", "queued", "throttled", "in_progress", "in progress"})


def check_hook(told: str) -> None:
    """Raise ValueError unless it names a hook."""
    if not _HOOK.fullmatch(told):
        raise ValueError("names what is no hook: write app, owner/repo:123 or organisation:123")


class GitHubHook:
    """The list of one hook. A :class:`pipeline.providers.deliveries.HookLog`.

    Args:
        host: GitHub's, for the name.
        hook: ``app``, ``owner/repo:123`` or ``organisation:123``, with the hook's id.
        calls: to its API.
    """

    def __init__(self, host: str, hook: str, calls: GitHubCalls) -> None:
        """Raises ValueError for what is no hook."""
        check_hook(hook)
        owner, _, number = hook.rpartition(":")
        self.name = f"github:{canonical_host(host)}:{hook}"
        self._calls = calls
        self._of = owner
        self._path = "/app/hook/deliveries"
        if owner:
            of = f"/repos/{owner}" if "/" in owner else f"/orgs/{owner}"
            self._path = f"{of}/hooks/{number}/deliveries"

    def page(self, cursor: str) -> Page:
        """See :class:`pipeline.providers.deliveries.HookLog`."""
        path = f"{self._path}?per_page={_PER_PAGE}"
        if cursor:
            path += f"&cursor={quote(cursor, safe='')}"
        of = self._of
        found = self._calls.listed(path, of) if of else self._calls.listed_of_app(path)
        attempts = [known for each in found.items if (known := attempt(each)) is not None]
        return Page(attempts, found.next.get("cursor", ""))

    def redeliver(self, attempt: int) -> Asked:
        """See :class:`pipeline.providers.deliveries.HookLog`."""
        try:
            there = self._calls.post(f"{self._path}/{attempt}/attempts", self._of)
        except Failed as failed:
            if failed.detail in (Detail.LIMITED, Detail.FORBIDDEN, Detail.UNSUPPORTED):
                return Asked.NOT
            # 400 or 422, or an answer of somebody between.
            return Asked.REFUSED if failed.detail is Detail.MALFORMED else Asked.FAILED
        return Asked.DONE if there else Asked.GONE

    def opens(self) -> float:
        """See :class:`pipeline.providers.deliveries.HookLog`."""
        lane = self._calls.lane(self._of) if self._of else ""
        return soon(self._calls, lane)


def soon(calls: Calls, lane: str) -> float:
    """In how many seconds a lane's budget has room for a call."""
    return calls.budget(lane).opens(0)


def attempt(told: Any) -> Attempt | None:
    """An entry of the list; None for what is none.

    It came when its status is 2xx. GitHub tells 0 for a connection that failed, and has a time at
    which it was throttled until it is tried.
    """
    if not isinstance(told, dict):
        return None
    number, guid, at = told.get("id"), told.get("guid"), _instant(told.get("delivered_at"))
    if (
        not isinstance(number, int) or isinstance(number, bool) or number <= 0
        or not isinstance(guid, str) or not 0 < len(guid) <= _LONGEST_GUID or at is None
    ):  # fmt: skip
        return None
    code, status = told.get("status_code"), told.get("status")
    code = code if isinstance(code, int) and not isinstance(code, bool) else 0
    word = status.strip().lower() if isinstance(status, str) else ""
    if 200 <= code < 300:
        came = Came.YES
    elif code:
        came = Came.NO
    elif word in _WAITING or (not word and told.get("throttled_at")):
        came = Came.WAITS
    else:
        came = Came.YES if word == "ok" else Came.NO
    event = told.get("event")
    return Attempt(
        number, guid, at, event if isinstance(event, str) else "",
        told.get("redelivery") is True, came,
    )  # fmt: skip


def _instant(told: Any) -> int | None:
    try:
        at = datetime.fromisoformat(told)
    except (TypeError, ValueError):
        return None
    ms = int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
    return ms if EARLIEST_MS <= ms <= LATEST_MS else None
