"""What a hook's list of deliveries says: what is missed, what to read next, what to ask for. Pure.

* **A delivery is missed** when none of its attempts succeeded. Attempts are grouped by GUID; one
  that failed says nothing by itself, because a later one may have succeeded, or, when somebody sent
  a good one again, an earlier one.
* **The list is read from its newest end**, down to where it was read before, and a little further.
  What a pass cannot finish stays a gap, which later passes read from where it was left. So an
  attempt is known to be missed once its first attempt was seen and nothing newer is unread.
* **It is asked for** again and again with growing pauses, some times in all. What somebody else
  asked for counts as well: the list shows it.
* **What waits** (throttled, under way) is waited for, for a while, and read again meanwhile.

What is known is a set of records, each merged by a join, so that reading a page twice changes
nothing, and a crash before it is written only reads it again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from pipeline.providers.deliveries import Asked, Attempt, Came, Page
from topics.missed import Gap, HookSeen, MissedDelivery, Over

#: Beyond the newest of all times.
_ALL: Final = 2**62
#: How far ahead of ours the provider's clock may be.
_AHEAD_MS: Final = 86_400_000
#: Gaps of a list, and failed attempts of a delivery, that are told apart.
_MOST_GAPS: Final = 16
_MOST_FAILED: Final = 32
#: Deliveries that are asked for after one write.
_AT_ONCE: Final = 20


@dataclass(frozen=True)
class Policy:
    """When deliveries are asked for. Times in ms.

    Attributes:
        lookback: how old a delivery may be; the provider has its own limit.
        asks: how often one is asked for.
        pause: after the first time; it doubles up to ``longest``.
        overlap: how far a pass reads into what was read before: lists are not quite in order.
        patience: how long an attempt may wait before it counts as failed.
        pass_asks: deliveries asked for in one pass.
        pass_calls: requests of one pass.
    """

    lookback: int = 3 * 86_400_000
    asks: int = 8
    pause: int = 600_000
    longest: int = 6 * 3_600_000
    overlap: int = 120_000
    patience: int = 3_600_000
    pass_asks: int = 500
    pass_calls: int = 300

    def after(self, asks: int) -> int:
        """How long to wait after so many."""
        return min(self.longest, self.pause << min(max(asks, 1) - 1, 16))


@dataclass
class News:
    """What became known: each delivery once."""

    found: list[MissedDelivery] = field(default_factory=list)
    filled: list[MissedDelivery] = field(default_factory=list)
    given_up: list[MissedDelivery] = field(default_factory=list)


def key_of(hook: str, guid: str) -> str:
    """The key of a delivery's record."""
    return f"{hook}|{guid}"


class Missed:
    """All that is known of the deliveries of one hook.

    Args:
        hook: its name.
        events: those that are ours; others are not asked for.
    """

    def __init__(self, hook: str, events: Iterable[str], policy: Policy) -> None:
        self.hook = hook
        self.policy = policy
        self._events = frozenset(events)
        self._known: dict[str, MissedDelivery] = {}
        self._seen_to: int | None = None
        self._gaps: list[Gap] = []
        self._changed: set[str] = set()
        self._moved = False
        #: Of the pass that runs: the newest time of the list, and whether all new was read.
        self._top: int | None = None
        self._caught_up = True
        self._calls = self._asks = 0
        self._news = News()
        #: Whether all that was read is judged, and what is due of it, the oldest first.
        self._settled = False
        self._queue: deque[MissedDelivery] = deque()

    # --- what was written before ------------------------------------------------------------------

    def load(self, record: MissedDelivery | HookSeen) -> None:
        """Take in a record, the latest of its key."""
        if isinstance(record, HookSeen):
            self._seen_to, self._gaps = record.seen_to, list(record.gaps)
        else:
            self._known[record.guid] = record

    def unload(self, guid: str) -> None:
        """The record of a delivery was taken back."""
        self._known.pop(guid, None)

    def changes(self, now: int) -> list[tuple[str, MissedDelivery | HookSeen | None]]:
        """What is to be written, by key, in that order; None takes back. Then it is unchanged.

        How far the list was read stands last: a crash in between reads again.
        """
        found: list[tuple[str, MissedDelivery | HookSeen | None]] = [
            (key_of(self.hook, guid), self._known.get(guid)) for guid in sorted(self._changed)
        ]
        if self._moved:
            seen = HookSeen(
                id=f"{self.hook}|{now}", source="runnerstream", occurred_at=now, received_at=now,
                key=self.hook, seen_to=self._seen_to, gaps=tuple(self._gaps),
            )  # fmt: skip
            found.append((self.hook, seen))
        self._changed.clear()
        self._moved = False
        return found

    # --- a pass -----------------------------------------------------------------------------------

    def begin(self, now: int) -> None:
        """A pass begins: the newest end of the list was not read."""
        horizon = now - self.policy.lookback
        seen = horizon if self._seen_to is None else self._seen_to - self.policy.overlap
        # A pass that did not get as far as the first page leaves what it was to read.
        floor = min([max(seen, horizon), *(gap.floor for gap in self._gaps if gap.above == _ALL)])
        self._gaps = [Gap(above=_ALL, floor=floor)] + [g for g in self._gaps if g.above != _ALL]
        self._top, self._caught_up = None, False
        self._calls = self._asks = 0
        self._news = News()
        self._settled = False
        while len(self._gaps) > _MOST_GAPS:
            older, newer = self._gaps.pop(), self._gaps.pop()
            self._gaps.append(newer.model_copy(update={"floor": older.floor}))

    def step(self, now: int) -> str | list[MissedDelivery] | None:
        """What to do next: read the page at a cursor, ask for some deliveries, or nothing more.

        What is new is read first, then what is due is asked for, then older gaps are read.
        """
        left = self.policy.pass_calls - self._calls
        if left <= 0:
            return None
        if not self._caught_up and left > self.policy.pass_calls // 2:
            return self._page()
        if not self._settled:
            self._settle(now)
            self._queue = deque(self.due(now))
        most = min(left, self.policy.pass_asks - self._asks, _AT_ONCE)
        if self._queue and most > 0:
            return [self._queue.popleft() for _ in range(min(most, len(self._queue)))]
        return self._page() if self._gaps else None

    def _page(self) -> str:
        self._calls += 1
        return self._gaps[0].cursor

    def read(self, page: Page, now: int) -> None:
        """A page was read: that at the newest gap."""
        self.take(page.attempts, now)
        self._settled = False
        gap = self._gaps[0]
        times = [each.at for each in page.attempts]
        if self._top is None and not gap.cursor and times:
            # A time that lies ahead must not hide what comes before it.
            self._top = min(max(times), now)
            self._seen_to = max(self._top, self._seen_to or 0)
        oldest = min(times, default=gap.above)
        # By the last one: lists are not quite in order, and the overlap is for that.
        last = times[-1] if times else gap.floor
        self._moved = True
        if (
            not page.cursor
            or page.cursor == gap.cursor
            or last < gap.floor
            or last < self._old(now)
        ):
            del self._gaps[0]
            self._caught_up = True
        else:
            more = {"cursor": page.cursor, "above": min(gap.above, oldest)}
            self._gaps[0] = gap.model_copy(update=more)

    def refused(self) -> None:
        """The provider does not know the cursor: the gap is read from the newest end on."""
        self._moved = True
        self._gaps[0] = self._gaps[0].model_copy(update={"cursor": ""})

    def end(self, now: int) -> News:
        """A pass has ended, finished or not: what is known now."""
        self._settle(now)
        young = [
            at
            for known in self._known.values()
            for at in known.waits.values()
            if now - at < self.policy.patience
        ]
        if self._seen_to is not None and young:
            # What waits is read again.
            self._seen_to = min(self._seen_to, *young)
            self._moved = True
        return self._news

    # --- attempts ---------------------------------------------------------------------------------

    def take(self, attempts: Iterable[Attempt], now: int) -> None:
        """Attempts that the list has, in any order, any of them again."""
        for each in attempts:
            if each.event not in self._events or not self._old(now) <= each.at <= now + _AHEAD_MS:
                continue
            before = self._known.get(each.guid)
            if before is None and each.came is Came.YES and not each.redelivery:
                continue
            after = self._merged(before, each, now)
            if after != before:
                self._put(after)

    def _merged(self, before: MissedDelivery | None, new: Attempt, now: int) -> MissedDelivery:
        known = before or MissedDelivery(
            id=key_of(self.hook, new.guid), source="runnerstream", occurred_at=new.at,
            received_at=now, key=key_of(self.hook, new.guid), hook=self.hook, guid=new.guid,
            at=new.at,
        )  # fmt: skip
        ended = new.came is not Came.WAITS or new.id in known.failed
        waits = {id_: at for id_, at in known.waits.items() if not (ended and id_ == new.id)}
        if not ended:
            waits[new.id] = new.at
        failed = set(known.failed) | ({new.id} if new.came is Came.NO else set())
        good = [at for at in (known.good_at, new.at if new.came is Came.YES else None) if at]
        asked = [at for at in (known.asked_at, new.at if new.redelivery else None) if at]
        return known.model_copy(
            update={
                "first": known.first if new.redelivery else new.id,
                "at": min(known.at, new.at),
                "good_at": min(good, default=None),
                "failed": tuple(sorted(failed)[:_MOST_FAILED]),
                "waits": waits,
                "asked_at": max(asked, default=None),
            }
        )

    def _settle(self, now: int) -> None:
        """Judge what is known, and forget what nobody needs."""
        self._settled = True
        news = self._news
        for guid, known in list(self._known.items()):
            after: MissedDelivery | None = known
            if known.good_at is not None:
                if known.missed:
                    news.filled.append(known)
                    after = known.model_copy(update={"missed": False})
                if not self._gaps:
                    after = None
            elif not known.first:
                # Its first attempt was not missed, or it would be known; or it is too old.
                after = known if self._gaps else None
            elif known.over is not None:
                after = None if known.at < self._old(now) - self.policy.overlap else known
            elif self._certain(known, now):
                after = self._judged(known, now, news)
            if after is None:
                del self._known[guid]
                self._changed.add(guid)
            elif after is not known:
                self._put(after)

    def _judged(self, known: MissedDelivery, now: int, news: News) -> MissedDelivery:
        """One that is certainly missed."""
        if not known.missed:
            news.found.append(known)
            known = known.model_copy(update={"missed": True})
        over = None
        if known.at < self._old(now):
            over = Over.EXPIRED
        elif self.asked(known) >= self.policy.asks and self._rested(known, now):
            over = Over.ATTEMPTS
        return self._over(known, over, news) if over else known

    def _over(self, known: MissedDelivery, over: Over, news: News) -> MissedDelivery:
        known = known.model_copy(update={"over": over})
        news.given_up.append(known)
        return known

    def _certain(self, known: MissedDelivery, now: int) -> bool:
        """Whether nothing that is unread or waits can say that it came."""
        if any(now - at < self.policy.patience for at in known.waits.values()):
            return False
        newest = max((gap.above for gap in self._gaps), default=0)
        return newest + self.policy.overlap < known.at

    def _rested(self, known: MissedDelivery, now: int) -> bool:
        if known.asked_at is None:
            return True
        return now >= known.asked_at + self.policy.after(self.asked(known))

    def _old(self, now: int) -> int:
        return now - self.policy.lookback

    @staticmethod
    def asked(known: MissedDelivery) -> int:
        """How often a delivery was asked for, by whomever."""
        again = {*known.failed, *known.waits} - {known.first}
        return max(known.asks, len(again))

    # --- asking -----------------------------------------------------------------------------------

    def due(self, now: int) -> list[MissedDelivery]:
        """Those to ask for now, the oldest first."""
        found = [
            known
            for known in self._known.values()
            if known.missed
            and known.good_at is None
            and known.over is None
            and known.at >= self._old(now)
            and self._certain(known, now)
            and self.asked(known) < self.policy.asks
            and self._rested(known, now)
        ]
        return sorted(found, key=lambda each: (each.at, each.guid))

    def asking(self, several: Sequence[MissedDelivery], now: int) -> None:
        """These are about to be asked for. To be written before they are."""
        for each in several:
            known = self._known[each.guid]
            more = {"asks": self.asked(known) + 1, "asked_at": max(now, known.asked_at or 0)}
            self._put(known.model_copy(update=more))
        self._asks += len(several)
        self._calls += len(several)

    def answered(self, before: MissedDelivery, asked: Asked) -> None:
        """What came of it; ``before`` is as :meth:`due` had it."""
        known = self._known[before.guid]
        if asked is Asked.GONE:
            self._put(self._over(known, Over.GONE, self._news))
        elif asked is Asked.NOT:
            self._put(known.model_copy(update={"asks": before.asks, "asked_at": before.asked_at}))
        elif asked is Asked.FAILED:
            # It may have been heard. So it rests, and does not count: a provider that is down for
            # hours must not use up what we may ask.
            self._put(known.model_copy(update={"asks": before.asks}))

    # --- how it is --------------------------------------------------------------------------------

    def open(self) -> list[MissedDelivery]:
        """What is missed, and not given up."""
        return [
            known
            for known in self._known.values()
            if known.missed and known.good_at is None and known.over is None
        ]

    def records(self) -> list[MissedDelivery]:
        """All that is known."""
        return list(self._known.values())

    @property
    def gaps(self) -> Sequence[Gap]:
        """What was not read, the newest first."""
        return tuple(self._gaps)

    def _put(self, known: MissedDelivery) -> None:
        self._known[known.guid] = known
        self._changed.add(known.guid)
