"""ClickHouse: the schema, the rows, the batch writer and the process that runs them.

Imports ``topics`` only. ``schema`` owns the tables, ``rows`` turns records into rows (pure),
``writer`` brings a batch into ClickHouse and does not give up, ``sink`` is the loop between Kafka
and the writer. The loop has a ``membership`` of its group, a ``progress``, a ``batch`` on its way
and ``letters`` for what cannot be stored; ``health``, ``metrics`` and ``http`` show how it does.
"""
