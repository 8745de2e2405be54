"""Tell the life of one job, as a dispatcher that hands jobs to runners would.

    python examples/dispatcher.py localhost:9092             a job with an id made up
    python examples/dispatcher.py localhost:9092 4711 30     job 4711, which runs for 30 seconds

Prints the key of the job. Each event is acknowledged by Kafka before the next step is taken, so a
dispatcher that dies has told no step that it did not take.
"""

import sys
import time

from topics.models import Conclusion, LifecycleEvent, LifecycleKind, RunnerRef, job_key
from topics.producer import Producer

RUNNER = RunnerRef(name="vm-17")


def event(kind: LifecycleKind, job_id: str, **more: object) -> LifecycleEvent:
    """One statement about the job. Its id says what it says: a repeat is no second statement."""
    now = int(time.time() * 1000)
    return LifecycleEvent(
        id=f"{kind.value}/{job_id}/{more.get('claim', '')}",
        kind=kind,
        source="example-dispatcher",
        occurred_at=now,
        received_at=now,
        key=job_key("github", "github.com", job_id),
        job_id=job_id,
        fleet="linux-small",
        **more,
    )


def main(brokers: str, job_id: str = "", seconds: str = "0") -> None:
    """Queue it, claim it, start a runner for it, and see it end."""
    job_id = job_id or str(time.time_ns() // 1_000_000)
    # Whatever tells this claim from the next one for the same job.
    claim = f"lease-{time.time_ns()}"
    with Producer(brokers) as producer:

        def tell(kind: LifecycleKind, **more: object) -> None:
            producer.post(event(kind, job_id, **more))
            producer.flush()

        tell(LifecycleKind.JOB_QUEUED)
        tell(LifecycleKind.JOB_CLAIMED, claim=claim, runner=RUNNER)
        tell(LifecycleKind.JOB_MINTED, claim=claim, runner=RUNNER)
        tell(LifecycleKind.JOB_STARTED, runner=RUNNER)
        time.sleep(float(seconds))
        tell(LifecycleKind.JOB_COMPLETED, runner=RUNNER, conclusion=Conclusion.SUCCESS)
        tell(LifecycleKind.CLAIM_RELEASED, claim=claim, reason="finished")
    print(job_key("github", "github.com", job_id))


if __name__ == "__main__":
    main(*sys.argv[1:])
