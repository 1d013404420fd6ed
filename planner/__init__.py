"""Attention Planner: what a token mixer costs, what accuracy it keeps, and which to choose.

The planner needs neither a GPU nor torch. The `profiler` package measures; this one decides.
"""


def __getattr__(name: str) -> str:
    """`__version__`, looked up when first asked for: it takes a quarter of importing the rest."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("attention-planner")
    except PackageNotFoundError:  # a checkout on the path, not installed
        return "0.1.0"
