"""Thin Faust agents: the batch transaction, and what is wired to it."""
