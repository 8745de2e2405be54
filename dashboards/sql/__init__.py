"""SQL that panels share, one module a family of events; the rules of all stand in
:mod:`dashboards.sql.events`.
"""
