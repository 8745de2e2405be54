"""``github``: what GitHub's API can do about a stuck job. Each action only when allowed by name.

``close`` cancels the job's run, and forces that when GitHub refuses or an earlier attempt did not
help. ``requeue`` runs the job again. With ``delete_runner``, either, or ``release_claim``, first
removes the registration of a runner that is lost, when GitHub itself calls it offline and idle.
GitHub answers 409 and 403 for runs that it cannot cancel or run again (actions/runner#3872): that
is ``cannot``, and no reason to try on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, Final
from urllib.parse import quote

from pipeline.executor.calls import Caller, Reply, Unreached
from pipeline.executor.fence import State
from pipeline.executor.via import Again, Verdict
from topics.keys import GITHUB_HOST, canonical_host, parse_job_key
from topics.recovery import Command, CommandKind, Result, StallKind

CANCEL: Final = "cancel_run"
FORCE: Final = "force_cancel_run"
RERUN: Final = "rerun_job"
DELETE: Final = "delete_runner"
ACTIONS: Final = (CANCEL, FORCE, RERUN, DELETE)

#: Gives the token for a repository (``owner/name``).
Token = Callable[[str], str]


class GitHub:
    """Acts through GitHub's REST API.

    Args:
        allow: names of :data:`ACTIONS`.
        token: asked before every call.
        host: whose jobs it acts on. Never another's: what a webhook calls its host must not decide
            where the token goes.
        base_url: of that host's API; empty: where GitHub has it.
    """

    name: Final = "github"

    def __init__(
        self,
        allow: Iterable[str],
        token: Token,
        host: str = GITHUB_HOST,
        base_url: str = "",
        timeout_s: float = 10.0,
    ) -> None:
        self._allow = frozenset(allow)
        self._token = token
        self._host = canonical_host(host)
        self._base = base_url.rstrip("/") or api_of(self._host)
        self._call = Caller(timeout_s, most_bytes=4 << 20)

    def cannot(self, command: Command) -> str:
        """Whether an action for it is allowed, and everything known that it needs."""
        wanted = self._wanted(command)
        if wanted is None:
            return "not_for_github"
        if not wanted & self._allow:
            return "not_allowed"
        if parse_job_key(command.job_key)[:2] != ("github", self._host):
            return "other_host"
        if "/" not in command.repo or (command.command is CommandKind.CLOSE and not command.run_id):
            return "no_run"
        return ""

    def act(self, command: Command, state: State | None) -> Verdict | Again:
        """Do what is allowed for it."""
        wanted = (self._wanted(command) or frozenset()) & self._allow
        said: Verdict | Again | None = None
        if DELETE in wanted:
            said = self._delete_runner(command, state.runner if state is not None else "")
            if isinstance(said, Again) or wanted == {DELETE}:
                return said
            if said.result is Result.REFUSED:
                return said
        if RERUN in wanted:
            job_id = parse_job_key(command.job_key)[2]
            return self._post(command, f"actions/jobs/{quote(job_id, safe='')}/rerun")
        if CANCEL in wanted:
            said = self._post(command, f"actions/runs/{command.run_id}/cancel")
            if FORCE not in wanted or isinstance(said, Again) or said.reason == "gone":
                return said
            if said.result is Result.DONE and command.attempt < 2:
                return said
        if FORCE in wanted:
            return self._post(command, f"actions/runs/{command.run_id}/force-cancel")
        return said or Verdict(Result.CANNOT, "not_allowed")

    def _wanted(self, command: Command) -> frozenset[str] | None:
        lost = {DELETE} if command.reason is StallKind.RUNNER_LOST else set()
        match command.command:
            case CommandKind.CLOSE:
                return frozenset({CANCEL, FORCE})
            case CommandKind.REQUEUE:
                return frozenset({RERUN, *lost})
            case CommandKind.RELEASE_CLAIM if lost:
                return frozenset(lost)
        return None

    def _delete_runner(self, command: Command, name: str) -> Verdict | Again:
        if not name:
            return Verdict(Result.CANNOT, "no_runner")
        listed = self._ask(command, "GET", f"actions/runners?name={quote(name, safe='')}")
        if not isinstance(listed, Reply):
            return listed
        runner = _runner(listed.body, name)
        if runner is None:
            return Verdict(Result.CANNOT, "runner_unknown")
        if runner.get("status") != "offline" or runner.get("busy") is not False:
            return Verdict(Result.REFUSED, "runner_online")
        said = self._ask(command, "DELETE", f"actions/runners/{runner['id']}")
        return Verdict(Result.DONE) if isinstance(said, Reply) else said

    def _post(self, command: Command, path: str) -> Verdict | Again:
        said = self._ask(command, "POST", path)
        return Verdict(Result.DONE) if isinstance(said, Reply) else said

    def _ask(self, command: Command, method: str, path: str) -> Reply | Verdict | Again:
        """The answer when it is a 2xx, else what it means."""
        url = f"{self._base}/repos/{quote(command.repo, safe='/')}/{path}"
        headers = {
            "Accept": "application/vnd.github+json",
            "X-GitHub-Api-Version": "2022-11-28",
            "User-Agent": "runnerstream",
            "Authorization": f"Bearer {self._token(command.repo)}",
        }
        try:
            reply = self._call(method, url, headers)
        except Unreached as error:
            if error.sent and method != "GET":
                return Verdict(Result.FAILED, error.reason)
            return Again(error.reason)
        return reply if 200 <= reply.status < 300 else meaning(reply)


def api_of(host: str) -> str:
    """Where GitHub has the REST API of a host: github.com, a tenant of ghe.com, or GHES."""
    if host == GITHUB_HOST or host.endswith(".ghe.com"):
        return f"https://api.{host}"
    return f"https://{host}/api/v3"


def meaning(reply: Reply) -> Verdict | Again:
    """What an answer that is no 2xx means. Pure."""
    limited = reply.headers.get("x-ratelimit-remaining") == "0" or "retry-after" in reply.headers
    if reply.status == 429 or (reply.status == 403 and limited):
        return Again("limited", reply.retry_after_s())
    if reply.status >= 500:
        return Again(f"http_{reply.status}")
    words = {401: "unauthorised", 403: "forbidden", 404: "gone", 409: "conflict", 410: "gone"}
    return Verdict(Result.CANNOT, words.get(reply.status, f"http_{reply.status}"))


def _runner(body: bytes, name: str) -> dict[str, Any] | None:
    try:
        found = json.loads(body)["runners"]
        named = [each for each in found if each["name"] == name and isinstance(each["id"], int)]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return named[0] if len(named) == 1 else None
