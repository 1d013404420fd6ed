"""attn-profile: measure what mixers cost on this machine. `attn-profile run --quick`.

Data goes to stdout, progress and messages to stderr. Exit codes: 0 ok (out_of_memory and
unsupported are results), 1 failure, 2 usage, 3 environment, 4 finished with mismatch, timeout or
error points, 130 interrupted with the state saved. A file per group of commands.
"""

from profiler.cli.main import app, main

__all__ = ["app", "main"]
