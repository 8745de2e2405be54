"""Real parts for the tests: brokers, and what starts them."""

from __future__ import annotations

from typing import Final

#: How many times the usual limit a wait may take before it fails. A machine that is busy with other
#: things is no reason to fail, and a wait that ends well ends as soon as it can.
PATIENCE: Final = 4
