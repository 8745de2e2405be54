"""Draws panels without a Grafana: ``answers`` asks, ``text`` and ``png`` draw what came."""
