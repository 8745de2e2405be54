"""The commands of ``runnerstream``, each in the module of its name, and what they share."""
