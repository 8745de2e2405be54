"""Measures the worker against a floor, in one run: ``python -m benchmarks`` (``make bench``).

What each part does and how to read it: ``benchmarks/README.md``.
"""
