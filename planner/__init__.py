"""Attention Planner: what a token mixer costs, what accuracy it keeps, and which to choose.

The planner needs neither a GPU nor torch. The `profiler` package measures; this one decides.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("attention-planner")
except PackageNotFoundError:  # a checkout on the path, not installed
    __version__ = "0.1.0"
