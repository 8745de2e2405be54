"""The commands of ``runnerstream``, one module per kind of task; ``pipeline.cli`` lists them."""
