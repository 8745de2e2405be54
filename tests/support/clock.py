"""A clock that is off: import this before anything that reads the time.

``TEST_CLOCK_OFF_S`` says by how many seconds this process's wall clock is ahead.
"""

from __future__ import annotations

import os
import time

_off = float(os.environ.get("TEST_CLOCK_OFF_S", "0"))
if _off:
    _time, _time_ns = time.time, time.time_ns
    time.time = lambda: _time() + _off
    time.time_ns = lambda: _time_ns() + int(_off * 1e9)
