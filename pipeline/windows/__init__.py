"""Tumbling windows over event time: what a fleet's timings looked like, minute by minute. Pure."""

from pipeline.windows.panes import (
    SIZES_S,
    STRANDED,
    Contribution,
    Pane,
    PaneKey,
    WindowPolicy,
    by_kind,
    contributions,
    decode_pane,
    encode_pane,
    pane_key_bytes,
    pane_key_of,
    pane_start,
    start_of,
    stranded,
    window_record,
)
from pipeline.windows.sketch import Sketch, bin_of

__all__ = [
    "SIZES_S",
    "STRANDED",
    "Contribution",
    "Pane",
    "PaneKey",
    "Sketch",
    "WindowPolicy",
    "bin_of",
    "by_kind",
    "contributions",
    "decode_pane",
    "encode_pane",
    "pane_key_bytes",
    "pane_key_of",
    "pane_start",
    "start_of",
    "stranded",
    "window_record",
]
