"""The role ``fold``: events to states, tables and views."""

from __future__ import annotations

import logging
import logging.config
import threading
from typing import Final

from pipeline.roles.role import Role
from pipeline.roles.supervisor import Supervisor
from pipeline.settings import Settings
from pipeline.text import version
from topics.catalogue import LOGS, POSTED

log = logging.getLogger(__name__)


def run(settings: Settings, stop: threading.Event, beside: Supervisor) -> int:
    """Run the fold in this process; the exit code. Faust hears the signals, ``stop`` is not asked.

    Raises kafka.errors.KafkaError when the broker cannot be asked.
    """
    # Late: Faust takes half a second to import, which the other commands need not pay.
    from pipeline.faust_safe.app import logging_config
    from pipeline.worker import Worker, is_fenced

    logging.config.dictConfig(logging_config(settings))
    log.info(
        "runnerstream %s, worker of group %s: Kafka %s, %d partitions, state in %s, views at %s/",
        version(), settings.app_id, settings.kafka, settings.partitions,
        "memory" if settings.store == "memory" else settings.data_dir,
        FOLD.url(settings),
    )  # fmt: skip
    fenced = is_fenced(settings)
    if not fenced:
        log.warning(
            "the embedded broker has no working transactions: a worker that was replaced while it "
            "slept is not refused. Use Apache Kafka for more than a trial"
        )
    made = Worker(settings, fenced=fenced, beside=beside)
    try:
        beside.start()
        return made.run()
    finally:
        beside.stop()


FOLD: Final = Role(
    "fold",
    "events to states, tables and views",
    run,
    reads=POSTED + LOGS,
    port="web_port",
    needs_topics=True,
    own_signals=True,
)
