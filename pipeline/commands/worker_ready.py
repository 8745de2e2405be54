"""Says in the log when a worker is ready, and while it is not, why."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from pipeline.commands.connections import ask
from pipeline.commands.failure import Failure

log = logging.getLogger(__name__)

#: How often the worker is asked. Seconds.
_ASK_S: Final = 0.5
#: How often it is told why the worker is not ready. Seconds.
_TELL_S: Final = 30.0


def tell_when_ready(url: str, shown: str, over: threading.Event) -> None:
    """Watch ``/readyz`` at ``url`` until it says ready for the first time, and log that with
    ``shown``, the address for people. The watching ends when ``over`` is set.
    """
    thread = threading.Thread(
        target=_watch, args=(url, shown, over), name="tell-when-ready", daemon=True
    )
    thread.start()


def _watch(url: str, shown: str, over: threading.Event) -> None:
    began = told = time.monotonic()
    while not over.wait(_ASK_S):
        reasons = "nothing answers yet"
        try:
            answer = ask(url, "/readyz", {"part": "fold"}, 5.0)
        except Failure:
            pass  # it has not come up
        else:
            if answer.get("ready"):
                took = time.monotonic() - began
                log.info("ready after %.1f s: %s/", took, shown)
                return
            several = [reason["text"] for reason in answer.get("reasons", ())]
            reasons = "; ".join(several) or str(answer.get("reason", ""))
        if time.monotonic() - told >= _TELL_S:
            told = time.monotonic()
            log.info("not ready yet, after %.0f s: %s", told - began, reasons)
