"""Speed and memory of the operators; see ``python -m benchmarks --help``."""
