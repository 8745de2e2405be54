"""Posts webhooks on to a program that takes them by HTTP: a consumer group for each target.

``screen`` says what is passed on, ``order`` what may be sent now and up to where a partition is
done, ``pace`` how much a target is asked for, ``target`` posts, ``letters`` sets aside what it did
not take, and ``relay`` puts them together.
"""

from pipeline.relay.relay import Relay, RelayConfig
from pipeline.relay.screen import Filters, Screen

__all__ = ["Filters", "Relay", "RelayConfig", "Screen"]
