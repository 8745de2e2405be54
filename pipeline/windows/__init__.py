"""Tumbling windows over event time: what a fleet's timings looked like, minute by minute. Pure."""

from pipeline.windows.panes import (
    SIZES_S,
    Contribution,
    Pane,
    WindowPolicy,
    contributions,
    decode_pane,
    encode_pane,
    pane_start,
    start_of,
    window_record,
)
from pipeline.windows.sketch import Sketch, bin_of

__all__ = [
    "SIZES_S",
    "Contribution",
    "Pane",
    "Sketch",
    "WindowPolicy",
    "bin_of",
    "contributions",
    "decode_pane",
    "encode_pane",
    "pane_start",
    "start_of",
    "window_record",
]
