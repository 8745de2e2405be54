"""A day of a CI fleet in which everything goes wrong, on real processes: ``python -m tests.soak``.

Broker, workers, prober and executors are what operators run. Provider and dispatcher are played,
over HTTP, from the truth (:mod:`tests.soak.day`). The clocks of all processes run fast, and what
the day is made of is shortened with the rules of recovery (:class:`tests.soak.day.Pace`).
"""
