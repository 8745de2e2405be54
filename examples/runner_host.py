"""Tell the life of a machine with runners, as the program on it would that starts them.

    python examples/runner_host.py localhost:9092              three jobs, one after another
    python examples/runner_host.py localhost:9092 20 5         20 jobs, of 5 seconds each

Prints the keys of the jobs and what became of the events. The runners work on while Kafka is away.
"""

import os
import sys
import time

from topics.emitter import Emitter
from topics.models import job_key

RUNNER, MACHINE = "vm-21", "rack-9"


def main(brokers: str, jobs: str = "3", seconds: str = "0") -> None:
    """Start a runner, execute some jobs, and take it down."""
    first = time.time_ns() // 1_000_000
    # What must never be told, whatever it gets into.
    secrets = [value for name, value in os.environ.items() if name.endswith("_TOKEN")]
    with Emitter(brokers, source=MACHINE, fleet="linux-small", secrets=secrets) as emitter:
        emitter.emit("runner.registered", runner=RUNNER, runner_host=MACHINE, boot_ms=41_000)
        emitter.keep_alive(RUNNER, runner_host=MACHINE)
        for job_id in range(first, first + int(jobs)):
            claim = f"lease-{job_id}"
            emitter.emit("job.claimed", job_id=job_id, claim=claim, runner=RUNNER)
            emitter.emit("job.started", job_id=job_id, runner=RUNNER)
            time.sleep(float(seconds))
            emitter.emit("job.completed", job_id=job_id, runner=RUNNER, conclusion="success")
            emitter.emit("claim.released", job_id=job_id, claim=claim, reason="finished")
            print(job_key("github", "github.com", job_id))
        emitter.let_go(RUNNER)
        emitter.emit("runner.gone", runner=RUNNER, runner_host=MACHINE)
    stats = emitter.stats()
    requests = sum(stats.requests.values())
    print(f"{stats.delivered} of {stats.offered} events delivered, in {requests} requests")


if __name__ == "__main__":
    main(*sys.argv[1:])
