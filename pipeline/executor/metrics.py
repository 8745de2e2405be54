"""What an executor tells Prometheus. Every metric is declared here, once, with type and labels."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from topics.models import Reason
from topics.recovery import CommandKind, Result

#: Beside how commands end: only shown; of a kind that this executor was not asked to take.
SHOWN: Final = "shown"
NOT_OURS: Final = "not_ours"


class ExecutorMetrics:
    """The metrics of one executor, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"runnerstream_executor_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"runnerstream_executor_{name}", text, registry=self.registry)

        #: Counter by command and result: commands this executor is done with.
        self.commands = counter(
            "commands", "Commands that ended here, by result", ("command", "result")
        )
        #: Counter: commands that had ended, or that another executor ended.
        self.duplicates = counter("duplicates", "Commands that were done by others or before")
        #: Counter: commands marked as not to be executed.
        self.dry_run = counter("dry_run", "Commands that were not to be executed")
        #: Counter: attempts after which a command was to be tried again.
        self.retries = counter("retries", "Attempts that will be made again")
        #: Counter by reason: records that are no commands.
        self.dead_letters = counter(
            "dead_letters", "Records set aside as dead letters", ("reason",)
        )
        #: Gauge: commands read that have not ended.
        self.in_hand = gauge("in_hand", "Commands read that have not ended")
        #: Gauge, seconds: since the command read last was issued; NaN before the first.
        self.last_command_age = gauge(
            "last_command_age_seconds", "Time since the command read last was issued"
        )
        #: Gauge, records: log end minus committed, over the owned partitions; NaN: not known.
        self.lag = gauge("lag_records", "Records not done with yet; NaN: not known")

        for command in CommandKind:
            for result in (*Result, SHOWN, NOT_OURS):
                self.commands.labels(command.value, str(result))
        for reason in Reason:
            self.dead_letters.labels(reason.value)
