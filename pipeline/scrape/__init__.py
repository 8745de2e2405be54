"""Looks at the ``/metrics`` of processes that cannot publish events, and tells what it saw.

``page`` reads what act_runner and gitea_runner show, ``look`` says which events follow from one
look after another (both pure), ``service`` is the process that looks, ``fetch`` and ``post`` its
two ends, ``metrics`` show how it does.
"""

from pipeline.scrape.look import Target
from pipeline.scrape.metrics import ScrapeMetrics
from pipeline.scrape.service import Scrape, ScrapeConfig, ScrapeStatus

__all__ = ["Scrape", "ScrapeConfig", "ScrapeMetrics", "ScrapeStatus", "Target"]
