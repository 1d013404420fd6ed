"""Reads the kernel times that NVIDIA's aiconfigurator-core ships (Apache-2.0), as imported points.

The package holds Parquet tables, one per device, operation, framework and version: attention with
windows, latent attention, Gated DeltaNet, KDA, short convolutions, matrix products, experts and
all-reduce. Each time is a mean over replays of the same buffers: warm, without spread.

    >>> found = read_package(Path("site-packages"), systems=["h200_sxm"])    # doctest: +SKIP
    >>> print(found.summary())                                              # doctest: +SKIP

Theirs becomes ours so:

    provider   framework, kernel and version: `vllm_fa3@0.24`. Other people's rows are providers of
               their own, never blended with measured ones.
    window     0 is none; W counts the query itself, as here.
    phase      context: isl new tokens, none cached. generation: one new after `step` cached. A
               recurrent step does not see how many are cached: 1 stands for some.
    variant    what their call differs in from ours: "kv=fp8", "state=bf16", "blockwise" …
    repeats    the same call, measured for several models: samples of one point, if they agree.

vLLM's attention rows include writing the new keys and values to the cache. Rows that cannot be
used are dropped and counted by reason; kernels several times slower than the device's best are
kept and flagged.
"""

from planner.formats.aiconfigurator.package import (
    SLOW_FLAG,
    Imported,
    find_root,
    into_store,
    points,
    read_package,
    write_csv,
)
from planner.formats.aiconfigurator.subset import of_the_catalog, shipped, write_shipped

__all__ = [
    "SLOW_FLAG",
    "Imported",
    "find_root",
    "into_store",
    "of_the_catalog",
    "points",
    "read_package",
    "shipped",
    "write_csv",
    "write_shipped",
]
