"""Deliveries of jobs that the configured routes leave without an account or a fleet.

They are believed and folded like all others. But nobody may be there to execute them: so they are
counted, and the latest are remembered to be shown.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from pipeline import metrics
from pipeline.effects import Note
from pipeline.providers.base import Fact
from pipeline.providers.github_bodies import installation_of
from pipeline.routes import Routes
from topics.keys import parse_job_key
from topics.models import Delivery, JobFact

#: Different ones that are remembered of each reason.
MOST_SAMPLES: Final = 50


class Sample(NamedTuple):
    """Deliveries that lack the same."""

    #: Which of them lack it.
    about: str
    deliveries: int
    #: Arrival of the first and the last of them, in ms; the last one's job.
    first_at: int
    last_at: int
    job_key: str


class Unrouted:
    """Counts and remembers. What is remembered is this process's, since it started."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._samples: dict[str, OrderedDict[str, Sample]] = {
            reason: OrderedDict() for reason in metrics.UNROUTED_REASONS
        }

    def look(self, delivery: Delivery, said: Iterable[Fact]) -> list[Note[Any]]:
        """Note what a delivery about jobs lacks: each reason at most once."""
        notes: list[Note[Any]] = []
        routes = self._routes
        lacking: set[str] = set()
        for fact in said:
            if not isinstance(fact, JobFact) or fact.job is None or not fact.job.repo:
                continue  # of what names no repository nothing is known
            repo, labels = fact.job.repo, fact.job.labels
            owner = repo.partition("/")[0]
            account = None
            if routes.accounts:
                host = parse_job_key(fact.key)[1]
                installation = installation_of(delivery.payload)
                account = routes.account(installation, host, repo)
                if account is None and "no_account" not in lacking:
                    lacking.add("no_account")
                    about = f"{host}/{owner}"
                    about += f", installation {installation}" if installation else ""
                    self._remember("no_account", about, delivery, fact.key)
            if routes.fleets and routes.fleet(repo, labels) is None and "no_fleet" not in lacking:
                lacking.add("no_fleet")
                about = f"{repo}: {', '.join(labels) or 'no labels'}"
                about += f" (account {account})" if account else ""
                self._remember("no_fleet", about, delivery, fact.key)
        notes += [Note(metrics.UNROUTED, (reason,)) for reason in sorted(lacking)]
        return notes

    def samples(self) -> dict[str, list[Sample]]:
        """The latest of each reason, the last one first."""
        return {reason: list(reversed(kept.values())) for reason, kept in self._samples.items()}

    def _remember(self, reason: str, about: str, delivery: Delivery, key: str) -> None:
        kept = self._samples[reason]
        about, at = about[:400], delivery.received_at
        known = kept.pop(about, None)
        count, first = (known.deliveries, known.first_at) if known else (0, at)
        kept[about] = Sample(about, count + 1, first, at, key)
        if len(kept) > MOST_SAMPLES:
            kept.popitem(last=False)
