"""What a request costs: CPU time and added latency of the router, beside a bare pass-through in the same run.

``python -m tests.benchmarks --help``. Ratios to the floor travel between machines, milliseconds do not.
"""
