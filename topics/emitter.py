"""Telling what happens from inside a runner host or a dispatcher, without getting in its way.

    from topics.emitter import Emitter

    with Emitter("localhost:9092", source="dispatcher-1", fleet="linux-small") as emitter:
        emitter.emit("job.claimed", job_id="4711", claim="lease-93", runner="vm-17")

:meth:`Emitter.emit` puts an event into memory and returns. A thread of its own sends what waits, in
batches, when :mod:`topics.batching` says so, and tries again for as long as Kafka is away. Memory
is bounded; what is dropped is counted (:meth:`Emitter.stats`), and told to the log
``topics.emitter``. Whatever goes wrong, the host is neither blocked nor does it get an exception.

Each event is delivered at least once. One that is told twice has the same id, and changes nothing.

Where each record must be on the brokers before the next step is taken, use
:class:`topics.producer.Producer`: it waits, and it raises.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Final, NoReturn, Self, TypedDict, Unpack

from pydantic import ValidationError

from topics.attempts import Attempts
from topics.batching import Batcher, Batching, Drop, Request, Stats, Trigger
from topics.keys import GITHUB_HOST, canonical_host, job_key
from topics.masking import Masker
from topics.models import RUNNER_KINDS, LifecycleEvent, LifecycleKind, RunnerRef

log = logging.getLogger(__name__)

#: What others wait for: it ends a wait, or something is lost. The rest waits for company.
URGENT: Final = frozenset(
    {
        LifecycleKind.JOB_STARTED,
        LifecycleKind.JOB_COMPLETED,
        LifecycleKind.CLAIM_RELEASED,
        LifecycleKind.RUNNER_GONE,
        LifecycleKind.HOST_GONE,
    }
)
_CLAIM_KINDS: Final = frozenset(
    {LifecycleKind.JOB_CLAIMED, LifecycleKind.JOB_MINTED, LifecycleKind.CLAIM_RELEASED}
)
#: Fields of an event that tell nothing apart: here a secret is masked. In any other it would make
#: one job, runner or fleet of several, so there the event is dropped.
_PROSE: Final = frozenset({"reason", "repo", "trace"})
#: Losses are told at most so often. Seconds.
_TELL_EVERY_S: Final = 60.0

_HEARTBEAT: Final = LifecycleKind.RUNNER_HEARTBEAT
_NEVER: Final = float("inf")
#: As long as the key of a job may be.
_LONGEST_KEY: Final = 256

_open: weakref.WeakSet[Emitter] = weakref.WeakSet()


class Said(TypedDict, total=False):
    """What an event says: the fields of :class:`~topics.models.LifecycleEvent`."""

    job_id: str | int
    #: Its name, or more.
    runner: str | RunnerRef
    claim: str
    #: The emitter's unless given; so are the next three.
    fleet: str
    source: str
    provider: str
    host: str
    runner_host: str
    boot_ms: int | None
    conclusion: str | None
    reason: str
    repo: str
    #: In ms; now unless given.
    occurred_at: int | None
    #: Made of kind, key, claim and time unless given.
    id: str
    trace: str | None


class Emitter:
    """Tells lifecycle events in batches. Safe to share between threads and with asyncio.

    ``source`` is who says it, ``fleet`` the pool that events belong to unless they name another;
    ``provider`` and ``host`` are part of the keys of jobs. ``secrets`` never leave the process, in
    whatever form they are written (:mod:`topics.masking`); passwords among the options are added.
    ``attempt_s`` is how long a request may take, ``close_s`` how long the end. ``options`` go to
    kafka-python (``security_protocol``, ``sasl_*``, ``ssl_*``, ``compression_type``).

    Nothing is connected yet when this returns. Raises ValueError for an option that does not exist
    or is not to be set, or a time that cannot be.
    """

    def __init__(
        self,
        brokers: str | Sequence[str],
        *,
        source: str,
        fleet: str = "",
        provider: str = "github",
        host: str = GITHUB_HOST,
        secrets: Iterable[str | bytes] = (),
        batching: Batching | None = None,
        attempt_s: float = 10.0,
        close_s: float = 10.0,
        **options: Any,
    ) -> None:
        if not (attempt_s > 0 and close_s >= 0):
            raise ValueError("attempt_s and close_s must be above 0")
        self._said = {"source": source, "fleet": fleet, "provider": provider, "host": host}
        self._masker = Masker(secrets)
        for name, value in options.items():
            if "password" in name and isinstance(value, str | bytes):
                self._masker.add(value)
        self._batching = batching or Batching()
        self._close_s = close_s
        self._attempts = Attempts(
            brokers, attempt_s, self._batching.request_bytes, _close_all_first, options
        )
        self._closing = False
        self._begin()
        _open.add(self)

    def _begin(self) -> None:
        """All that belongs to one process."""
        self._changed = threading.Condition()
        self._batcher = Batcher(self._batching, time.monotonic())
        self._thread: threading.Thread | None = None
        self._wakes_at = _NEVER
        self._deadline: float | None = None
        self._finished: Future[Stats] = Future()
        self._finished.set_running_or_notify_cancel()
        self._asked: list[tuple[int, Future[bool]]] = []
        self._alive: dict[str, Said] = {}
        self._next_beat = _NEVER
        self._news = _News(self._masker)

    # --- telling ------------------------------------------------------------------------------

    def emit(
        self, kind: LifecycleKind | str, *, urgent: bool | None = None, **said: Unpack[Said]
    ) -> bool:
        """Tell an event; whether it was taken. Never waits, never raises.

        ``urgent``: send it at once, or let it wait for company; None goes by the kind
        (:data:`URGENT`). False: it makes no event, or nothing more is taken; see
        :meth:`stats`.
        """
        return self._tell(lambda: self.event(kind, **said), urgent)

    def post(self, event: LifecycleEvent, *, urgent: bool | None = None) -> bool:
        """Tell an event that is made already; as :meth:`emit`."""
        return self._tell(lambda: event, urgent)

    def event(self, kind: LifecycleKind | str, **said: Unpack[Said]) -> LifecycleEvent:
        """The event that :meth:`emit` would tell. Raises ValueError when it makes none, or one that
        the pipeline would put aside."""
        if unknown := said.keys() - Said.__annotations__.keys():
            raise ValueError(f"an event has no {', '.join(sorted(unknown))}")
        try:
            event = _event({**self._said, **said, "kind": LifecycleKind(kind)})
        except (TypeError, AttributeError) as error:
            raise ValueError(f"a field is of the wrong type: {error}") from error
        _require_names(event)
        return event

    def keep_alive(self, runner: str, *, fleet: str = "", runner_host: str = "") -> None:
        """Send a heartbeat of this runner now and at every ``heartbeat_s``, whether or not
        anything else is told, until :meth:`let_go`. Only the newest that waits is kept.

        Who sends heartbeats is missed when they stop: let go of a runner that is gone.
        """
        said: Said = {"runner": runner, "runner_host": runner_host}
        if fleet:
            said["fleet"] = fleet
        with self._changed:
            if not self._closing:
                self._alive[runner] = said
                self._next_beat = time.monotonic()
                self._stir()

    def let_go(self, runner: str) -> None:
        """Send no more heartbeats of this runner."""
        with self._changed:
            self._alive.pop(runner, None)
            if not self._alive:
                self._next_beat = _NEVER

    def mask(self, secret: str | bytes) -> None:
        """Let this not leave the process either, from now on."""
        self._masker.add(secret)

    def stats(self) -> Stats:
        """Counts so far; what waits, and since when."""
        with self._changed:
            return self._batcher.stats(time.monotonic())

    @property
    def trouble(self) -> str:
        """Why the latest request failed; empty when it did not."""
        return self._news.trouble

    # --- waiting ------------------------------------------------------------------------------

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Send all that was told so far, and wait; whether none of it waits any more."""
        asked = self._ask()
        with suppress(TimeoutError):
            return asked.result(timeout_s)
        return False

    async def aflush(self, timeout_s: float = 10.0) -> bool:
        """As :meth:`flush`, for asyncio."""
        with suppress(TimeoutError):
            return await asyncio.wait_for(asyncio.wrap_future(self._ask()), timeout_s)
        return False

    def close(self, timeout_s: float | None = None) -> Stats:
        """Take nothing more and deliver what is left, for ``close_s`` at most unless given; what
        became of everything. May be called again.

        The thread does it, so it goes on when whoever waits here is interrupted. A program that
        ends without it does it then.
        """
        left = self._begin_close(timeout_s)
        with suppress(TimeoutError):
            return self._finished.result(left)
        return self._give_up()

    async def aclose(self, timeout_s: float | None = None) -> Stats:
        """As :meth:`close`, for asyncio."""
        left = self._begin_close(timeout_s)
        with suppress(TimeoutError):
            return await asyncio.wait_for(asyncio.wrap_future(self._finished), left)
        return self._give_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    # --- inside: the host's threads -----------------------------------------------------------

    def _tell(
        self, make: Callable[[], LifecycleEvent], urgent: bool | None, slot: str = ""
    ) -> bool:
        # Whatever a host hands over, it must not get an exception for it.
        try:
            event = make()
            _require_names(event)
            masked = _masked(event, self._masker)
            with self._changed:
                if slot and slot not in self._alive:
                    return False  # let go meanwhile
                if isinstance(masked, Drop):
                    self._batcher.drop(masked)
                    taken = False
                else:
                    urgent = event.kind in URGENT if urgent is None else urgent
                    taken = self._put(masked, urgent, slot)
                self._stir()
        except Exception as error:
            with self._changed:
                self._batcher.drop(Drop.INVALID)
                self._news.odd = error
                self._stir()
            return False
        return taken

    def _put(self, event: LifecycleEvent, urgent: bool, slot: str) -> bool:
        value = event.model_dump_json(exclude_defaults=True, by_alias=True).encode()
        now = time.monotonic()
        return self._batcher.put(now, event.key.encode(), value, urgent=urgent, slot=slot) is None

    def _stir(self) -> None:
        """Wake the thread if it has something to do sooner than it thinks. With the lock."""
        if self._thread is None and not self._closing:
            thread = threading.Thread(target=self._run, name="emitter", daemon=True)
            # A machine without room for a thread has it later, perhaps.
            with suppress(RuntimeError):
                thread.start()
                self._thread = thread
        if self._next_at(time.monotonic()) < self._wakes_at:
            self._changed.notify_all()

    def _next_at(self, now: float) -> float:
        """When there is something to do next. With the lock."""
        due = self._batcher.due(now)
        at = min(self._next_beat, self._news.due_at(self._batcher.lost))
        return min(at, due[0]) if due else at

    def _ask(self) -> Future[bool]:
        asked: Future[bool] = Future()
        asked.set_running_or_notify_cancel()
        with self._changed:
            self._asked.append((self._batcher.flush(), asked))
            self._answer()
            self._changed.notify_all()
        return asked

    def _answer(self) -> None:
        """Tell who waits for what is settled. With the lock."""
        waiting, self._asked = self._asked, []
        for each in waiting:
            if self._batcher.is_settled(each[0]):
                each[1].set_result(True)
            else:
                self._asked.append(each)

    def _begin_close(self, timeout_s: float | None) -> float:
        """Begin the end, unless it has begun; how long it may still take."""
        now = time.monotonic()
        with self._changed:
            if self._deadline is None:
                self._deadline = now + (self._close_s if timeout_s is None else timeout_s)
                self._closing = True
                self._alive.clear()
                self._next_beat = _NEVER
                self._batcher.close()
                if self._thread is None:
                    self._finish()
                self._changed.notify_all()
            return max(0.0, self._deadline - now)

    def _give_up(self) -> Stats:
        """The end has taken too long: the thread is held up in a call."""
        with self._changed:
            self._finish()
            self._changed.notify_all()
        self._tell_log()
        return self._finished.result()

    def _finish(self) -> None:
        """Leave what is left, and tell who waits. With the lock."""
        if self._finished.done():
            return
        now = time.monotonic()
        self._batcher.abandon()
        self._news.look(self._batcher.stats(now), now)
        self._answer()
        self._finished.set_result(self._batcher.stats(now))
        _open.discard(self)

    def _tell_log(self) -> None:
        """Without the lock: a handler of the host's may take its time, or emit something."""
        with self._changed:
            messages = self._news.take()
        for level, message in messages:
            log.log(level, "%s", message)

    # --- inside: the thread -------------------------------------------------------------------

    def _run(self) -> None:
        while not self._finished.done():
            try:
                self._beat()
                request = self._next()
                if request is not None:
                    self._send(request)
                self._tell_log()
            except Exception:
                # A fault of ours must not end the thread, nor run in circles.
                log.exception("the emitter stumbled")
                time.sleep(1)
        self._attempts.discard()

    def _next(self) -> Request | None:
        """Wait for the next request; None when there is something else to see to."""
        with self._changed:
            while not self._finished.done():
                now = time.monotonic()
                if self._news.due_at(self._batcher.lost) <= now:
                    self._news.look(self._batcher.stats(now), now)
                    return None
                if self._next_beat <= now:
                    return None
                if (request := self._batcher.take(now)) is not None:
                    return request
                at = self._next_at(now)
                if self._deadline is not None:
                    if self._batcher.due(now) is None or now >= self._deadline:
                        self._finish()
                        return None
                    at = min(at, self._deadline)
                self._wakes_at = at
                self._changed.wait(None if at == _NEVER else max(0.0, at - now))
                self._wakes_at = 0.0
        return None

    def _send(self, request: Request) -> None:
        left = None if self._deadline is None else self._deadline - time.monotonic()
        failed, refused, why = self._attempts.send(request.parcels, left)
        now = time.monotonic()
        with self._changed:
            if self._finished.done():
                return
            self._batcher.settle(now, failed, refused, random.random())
            self._answer()
            self._news.sent(self._batcher.stats(now), now, why)

    def _beat(self) -> None:
        """Make the heartbeats that are due."""
        with self._changed:
            now = time.monotonic()
            if self._next_beat > now:
                return
            # Counted from now: after a standstill one beat is enough.
            self._next_beat = now + self._batching.heartbeat_s
            alive = list(self._alive.items())
        for runner, said in alive:
            self._tell(partial(self.event, _HEARTBEAT, **said), urgent=False, slot=runner)
        with self._changed:
            self._batcher.flush(Trigger.HEARTBEAT)

    # --- inside: processes --------------------------------------------------------------------

    def _in_child(self) -> None:
        """After a fork: what waits is the parent's to tell, and so is its connection."""
        closed = self._closing
        self._begin()
        self._attempts.forget()
        if closed:
            self._begin_close(0)


def _event(said: dict[str, Any]) -> LifecycleEvent:
    """Raises ValueError."""
    now = time.time_ns() // 1_000_000
    said["received_at"] = now
    if said.get("occurred_at") is None:
        said["occurred_at"] = now
    runner = said.get("runner") or ""
    runner = RunnerRef.model_validate({"name": runner} if isinstance(runner, str) else runner)
    said["runner"] = runner
    kind = said["kind"]
    if kind is LifecycleKind.HOST_GONE:
        said["key"] = said.get("runner_host") or _lacks(kind)
    elif kind in RUNNER_KINDS:
        said["key"] = runner.name or _lacks(kind)
    else:
        said["key"] = job_key(said["provider"], said["host"], said.get("job_id", ""))
    if not said.get("id"):
        parts = (kind.value, said["key"], said.get("claim") or "", said["occurred_at"])
        said["id"] = "/".join(map(str, parts))[:512]
    return LifecycleEvent.model_validate(said)


def _require_names(event: LifecycleEvent) -> None:
    """Raise ValueError for what the pipeline would put aside."""
    if event.kind in _CLAIM_KINDS and not event.claim.strip():
        raise ValueError(f"{event.kind.value} needs a claim")
    if event.kind not in RUNNER_KINDS:
        key = job_key(event.provider, canonical_host(event.host) or GITHUB_HOST, event.job_id)
        if len(key) > _LONGEST_KEY:
            raise ValueError("provider and host are too long for a key")
        return
    of_host = event.kind is LifecycleKind.HOST_GONE
    if not event.fleet or not (event.runner_host if of_host else event.runner.name):
        _lacks(event.kind)


def _lacks(kind: LifecycleKind) -> NoReturn:
    what = "runner_host" if kind is LifecycleKind.HOST_GONE else "runner"
    raise ValueError(f"{kind.value} needs a fleet and a {what}")


def _masked(event: LifecycleEvent, masker: Masker) -> LifecycleEvent | Drop:
    """The event without secrets; a reason to drop it where it cannot be told without."""
    texts = {name: value for name, value in event if type(value) is str}
    texts |= {f"runner.{name}": value for name, value in event.runner if type(value) is str}
    together = "\n".join(texts.values())
    if masker.mask(together) == together:
        return event
    masked = {name: masker.mask(value) for name, value in texts.items()}
    changed = {name: value for name, value in masked.items() if value != texts[name]}
    return event.model_copy(update=changed) if changed.keys() <= _PROSE else Drop.SECRET


class _News:
    """What the log is told: an outage at each of its ends, and losses now and then."""

    def __init__(self, masker: Masker) -> None:
        #: Why the latest event was none.
        self.odd: BaseException | None = None
        self.trouble = ""
        self._masker = masker
        self._messages: list[tuple[int, str]] = []
        self._away_since: float | None = None
        self._lost = 0
        self._next_tell = 0.0

    def due_at(self, lost: int) -> float:
        """When losses are to be told."""
        return self._next_tell if lost > self._lost else _NEVER

    def look(self, stats: Stats, now: float) -> None:
        """Tell losses, if there are new ones."""
        lost = sum(stats.dropped.values())
        if lost <= self._lost:
            return
        why = ", ".join(f"{number} {drop}" for drop, number in stats.dropped.items() if number)
        odd = f"; the latest: {self._short(self.odd)}" if self.odd is not None else ""
        self._say(logging.WARNING, f"events dropped: {lost - self._lost} (so far: {why}){odd}")
        self._lost, self._next_tell, self.odd = lost, now + _TELL_EVERY_S, None

    def sent(self, stats: Stats, now: float, error: BaseException | None) -> None:
        """A request was answered, or was not."""
        self.trouble = "" if error is None else self._short(error)
        if error is not None and self._away_since is None:
            self._away_since = now
            self._say(
                logging.WARNING,
                f"events are not delivered ({self.trouble}): {stats.waiting} wait",
            )
        elif error is None and self._away_since is not None:
            gone = now - self._away_since
            self._away_since = None
            self._say(logging.WARNING, f"events are delivered again after {gone:.0f} s")

    def take(self) -> list[tuple[int, str]]:
        """What has not been told yet."""
        messages, self._messages = self._messages, []
        return messages

    def _say(self, level: int, message: str) -> None:
        self._messages.append((level, message))

    def _short(self, error: BaseException) -> str:
        if isinstance(error, ValidationError):
            first = error.errors(include_input=False, include_url=False)[0]
            text = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        else:
            text = f"{type(error).__name__}: {error}"
        return self._masker.mask(" ".join(text.split()))[:300]


def _close_all() -> None:
    """At the end of the program: all at once, each within its own limit."""
    for emitter in list(_open):
        emitter._begin_close(None)
    for emitter in list(_open):
        emitter.close()


def _close_all_first() -> None:
    """Deliver before kafka-python ends its clients: what registers last is called first."""
    atexit.unregister(_close_all)
    atexit.register(_close_all)


def _after_fork() -> None:
    for emitter in list(_open):
        emitter._in_child()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork)
