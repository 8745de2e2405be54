"""Finds what no webhook told: deliveries that never came, and runs and jobs that nobody spoke of.

``missed`` says what a hook's list of deliveries means and what to ask for (pure), ``fill`` makes a
pass over one list, ``reconcile`` over the runs of one repository; ``store`` has what is known in
``runners.missed`` and says what is ours, ``service`` is the process, ``metrics`` show how it does.
"""
