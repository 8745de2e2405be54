"""The runnerstream pipeline: pure domain rooms, thin edges, one command line."""
