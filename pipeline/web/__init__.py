"""What people and programs ask a worker over HTTP: jobs, fleets, windows, workers, health.

``part`` is what this worker knows itself, ``group`` asks the others, ``health`` knows whether the
answers can be trusted, ``views`` makes JSON and HTML of them. Views only read.
"""

from pipeline.web.views import mount

__all__ = ["mount"]
