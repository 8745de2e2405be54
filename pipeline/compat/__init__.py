"""The model systems' metrics under their own names, as they follow from ours.

``names`` lists the systems, ``model`` says what a declaration is, and each system's module is one:
plain data. ``page`` keeps their series beside ours and writes ``/metrics/compat``. ``parity`` tells
where all that the systems show is here (docs/parity.md). A further system is a module with a
declaration, a name in ``names``, and a line in ``systems``.
"""
