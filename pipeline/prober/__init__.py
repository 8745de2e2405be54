"""The prober: asks providers about jobs that may be stuck, and posts what they say.

A consumer group of its own on ``runners.probes``, so that a slow API cannot starve the fold.
``desk`` knows which question is next (pure), ``offsets`` how far the group may say it is (pure),
``post`` what is acknowledged, ``prober`` is the loop; ``metrics`` shows how it does.
"""
