"""The suites of `scripts/benchmark.py`, one file each."""
