"""The program, noting when each transaction ended: ``python -m benchmarks.observed worker ...``.

It is ``runnerstream`` itself with three hooks, none of them in the way of a record: after each
transaction, at the end of a rebalance, and at the first batch. Each appends one JSON line to the
file named by ``BENCH_MARKS``: the monotonic clock (of the machine, so comparable with the
parent's), the processor time of this process, and what was done. So rates and costs begin with
the first batch and leave out the start of the program.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from pipeline.agents.transaction import Done
from pipeline.cli import main
from pipeline.exporter import Exporter
from pipeline.worker import Worker


def observe(path: str) -> None:
    """Install the hooks."""
    marks = open(path, "a", buffering=1)  # noqa: SIM115 (as long as the process)

    def mark(what: str, **more: Any) -> None:
        line = {"what": what, "t": time.monotonic(), "cpu": time.process_time(), **more}
        marks.write(json.dumps(line) + "\n")

    count = Exporter.done

    def done(self: Exporter, said: Done) -> None:
        count(self, said)
        mark(
            said.stage,
            records=said.records,
            seconds=said.seconds,
            fold_seconds=said.fold_seconds,
            writes=dict(said.writes),
        )

    build = Worker.__init__

    def init(self: Worker, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)

        async def assigned(app: Any, partitions: Any, **_: Any) -> None:
            mark("assigned")

        async def settled(app: Any, **_: Any) -> None:
            mark("settled")

        self.app.on_partitions_assigned.connect(assigned, weak=False)
        self.app.on_rebalance_complete.connect(settled, weak=False)

    setattr(Exporter, "done", done)  # noqa: B010 (mypy refuses the plain assignment)
    setattr(Worker, "__init__", init)  # noqa: B010
    mark("imported")


if __name__ == "__main__":
    observe(os.environ["BENCH_MARKS"])
    sys.exit(main(prog_name="runnerstream"))
