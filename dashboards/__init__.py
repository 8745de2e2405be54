"""Dashboards, alerts and what draws them: declared once, for Grafana, for ``runnerstream plot`` and
for the tests.

A dashboard is a module with one function a panel; :mod:`dashboards.model` says what a panel is,
:mod:`dashboards.config` has the thresholds and selectors that they share. ``python -m
dashboards.generate`` writes what Grafana and Prometheus read.
"""
