"""Executors: they do what commands say, once each, and tell how it ended.

A consumer group of its own for each way of doing it (:mod:`pipeline.executor.via`). What holds for
all of them is in :mod:`pipeline.executor.doer`: expiry, fence, written ahead, never twice.
"""

from pipeline.executor.fence import States
from pipeline.executor.github import GitHub
from pipeline.executor.hook import Hook
from pipeline.executor.printing import Print, parts
from pipeline.executor.redeliver import Redeliver
from pipeline.executor.service import Executor, ExecutorConfig
from pipeline.executor.via import Via

__all__ = [
    "Executor",
    "ExecutorConfig",
    "GitHub",
    "Hook",
    "Print",
    "Redeliver",
    "States",
    "Via",
    "parts",
]
