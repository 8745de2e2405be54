"""``runnerstream`` by the clock of ``TEST_CLOCK``: ``python -m tests.soak.launch worker``."""

from __future__ import annotations

import tests.support.clock  # noqa: F401 - before whatever keeps a reference to the clock

# isort: split
import os

from pipeline.cli import main

if __name__ == "__main__":
    if told := os.environ.get("TEST_WATCH_S"):
        # It looks at the logs every 3 s, by the clock that is not fast.
        from pipeline.web import watch

        vars(watch)["EVERY_S"] = float(told)
    main()
