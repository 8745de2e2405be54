"""Telling what happens from inside a runner host or a dispatcher, without getting in its way.

    from topics.emitter import Emitter

    with Emitter("localhost:9092", source="dispatcher-1", fleet="linux-small") as emitter:
        emitter.emit("job.claimed", job_id="4711", claim="lease-93", runner="vm-17")
        emitter.emit("dispatch.request", outcome="served", duration_ms=41)

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
from typing import Any, Final, Self, Unpack, overload

from pydantic import ValidationError

from topics.attempts import Attempts
from topics.batching import Batcher, Batching, Drop, Request, Stats, Trigger
from topics.keys import GITHUB_HOST
from topics.masking import Masker
from topics.models import LifecycleEvent, LifecycleKind
from topics.producer import addressed
from topics.rounds import Rounds
from topics.said import URGENT, Fields, Maker, Said, Told, masked, require_names, sayable

log = logging.getLogger(__name__)

#: Losses are told at most so often. Seconds.
_TELL_EVERY_S: Final = 60.0

_HEARTBEAT: Final = LifecycleKind.RUNNER_HEARTBEAT
_NEVER: Final = float("inf")

_open: weakref.WeakSet[Emitter] = weakref.WeakSet()


class Emitter:
    """Tells lifecycle events and telemetry in batches. Safe to share between threads and with
    asyncio.

    ``source`` is who says it; ``fleet`` and ``runner`` are what events are about unless they name
    others; ``provider`` and ``host`` are part of the keys of jobs. ``secrets`` never leave, in
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
        runner: str = "",
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
        always = {"source": source, "fleet": fleet, "provider": provider, "host": host}
        self._masker = Masker(secrets)
        self._maker = Maker(always | ({"runner": runner} if runner else {}), self._masker)
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
        self._rounds = Rounds[tuple[str, Fields]]()
        self._news = _News(self._masker)

    # --- telling ------------------------------------------------------------------------------

    @overload
    def emit(
        self, kind: LifecycleKind, *, urgent: bool | None = None, **said: Unpack[Said]
    ) -> bool: ...

    @overload
    def emit(self, kind: str, *, urgent: bool | None = None, **said: Any) -> bool: ...

    def emit(self, kind: str, *, urgent: bool | None = None, **said: Any) -> bool:
        """Tell an event; whether it was taken. Never waits, never raises.

        ``kind`` is a lifecycle event's, with the fields of :class:`~topics.said.Said`, or one of
        telemetry's (:data:`topics.events.MODELS`) with those of its model. ``urgent``: send it at
        once, or let it wait for company; None goes by the kind (:data:`~topics.said.URGENT`).
        False: it makes no event, or nothing more is taken; see :meth:`stats`.
        """
        return self._tell(lambda: self.event(kind, **said), urgent)

    def post(self, event: Told, *, urgent: bool | None = None) -> bool:
        """Tell an event that is made already, of whichever model; as :meth:`emit`."""
        return self._tell(lambda: event, urgent)

    @overload
    def event(self, kind: LifecycleKind, **said: Unpack[Said]) -> LifecycleEvent: ...

    @overload
    def event(self, kind: str, **said: Any) -> Told: ...

    def event(self, kind: str, **said: Any) -> Told:
        """The event that :meth:`emit` would tell. Raises ValueError when it makes none, or one that
        the pipeline would put aside."""
        return self._maker.event(kind, said)

    def keep_alive(self, runner: str, *, fleet: str = "", runner_host: str = "") -> None:
        """Send a heartbeat of this runner now and at every ``heartbeat_s``, whether or not
        anything else is told, until :meth:`let_go`. Only the newest that waits is kept.

        Who sends heartbeats is missed when they stop: let go of a runner that is gone.
        """
        said: Said = {"runner": runner, "runner_host": runner_host}
        if fleet:
            said["fleet"] = fleet
        every = self._batching.heartbeat_s
        self._again(runner, every, LifecycleKind.RUNNER_HEARTBEAT, said.copy, time.monotonic())

    def let_go(self, runner: str) -> None:
        """Send no more heartbeats of this runner."""
        with self._changed:
            self._rounds.remove(runner)

    def sample(
        self, kind: str, fields: Fields, *, every_s: float | None = None
    ) -> Callable[[], None]:
        """Tell a level (``pool.sample``, ``runner.status``) now and at every ``every_s``, whether
        or not it changed; at every ``heartbeat_s`` unless given. Call what is returned to end it.

        ``fields`` says what it is each time, of one subject; None: not known now, so nothing is
        told. It is called here, and then by the emitter's thread, which waits for it. What it
        raises makes no event, and the next is asked for. Of those that wait only the newest is
        kept. Raises ValueError for a kind of no event and an ``every_s`` that is not above 0.
        """
        sayable(kind)
        every = self._batching.heartbeat_s if every_s is None else every_s
        if not 0 < every < _NEVER:
            raise ValueError(f"every_s must be above 0, not {every_s!r}")
        slot = object()
        self._again(slot, every, kind, fields, time.monotonic() + every)
        self._tell(partial(self._level, kind, fields), urgent=False, slot=slot)

        def end() -> None:
            with self._changed:
                self._rounds.remove(slot)

        return end

    def _again(self, slot: object, every_s: float, kind: str, fields: Fields, at: float) -> None:
        with self._changed:
            if not self._closing:
                self._rounds.add(slot, every_s, (kind, fields), at)
                self._stir()

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

    def _tell(self, make: Callable[[], Any], urgent: bool | None, slot: object = None) -> bool:
        # Whatever a host hands over, it must not get an exception for it.
        try:
            event = make()
            if event is None and slot is not None:
                return False  # not known now
            require_names(event)
            told = masked(event, self._masker)
            parcel = None if isinstance(told, Drop) else addressed(told)
            with self._changed:
                if slot is not None and slot not in self._rounds:
                    return False  # let go meanwhile
                if parcel is None:
                    self._batcher.drop(Drop.SECRET)
                    taken = False
                else:
                    urgent = event.kind in URGENT if urgent is None else urgent
                    now = time.monotonic()
                    taken = self._batcher.put(now, *parcel, urgent=urgent, slot=slot) is None
                self._stir()
        except Exception as error:
            with self._changed:
                self._batcher.drop(Drop.INVALID)
                self._news.odd = error
                self._stir()
            return False
        return taken

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
        at = min(self._rounds.due_at, self._news.due_at(self._batcher.lost))
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
                self._rounds.clear()
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
                self._go_round()
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
                if self._rounds.due_at <= now:
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
            if refused:
                self._news.odd = why
            self._news.sent(self._batcher.stats(now), now, why if failed else None)

    def _go_round(self) -> None:
        """Tell what is due again."""
        with self._changed:
            due = self._rounds.take(time.monotonic())
        beats = False
        for slot, (kind, fields) in due:
            self._tell(partial(self._level, kind, fields), urgent=False, slot=slot)
            beats = beats or kind == LifecycleKind.RUNNER_HEARTBEAT
        if beats:
            with self._changed:
                self._batcher.flush(Trigger.HEARTBEAT)

    def _level(self, kind: str, fields: Fields) -> Told | None:
        said = fields()
        return None if said is None else self.event(kind, **said)

    # --- inside: processes --------------------------------------------------------------------

    def _in_child(self) -> None:
        """After a fork: what waits is the parent's to tell, and so is its connection."""
        closed = self._closing
        self._maker.renew()
        self._begin()
        self._attempts.forget()
        if closed:
            self._begin_close(0)


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
