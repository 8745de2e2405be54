"""SQL that panels of telemetry share, one module a family of events; the rules of all stand in
:mod:`dashboards.telemetry.events`.
"""
