"""The mixers on silicon: one `Family` each, found by name; your own kernels by ATTN_PROVIDERS.

    >>> get_family("full_attention").provider("sdpa_cpu").devices
    ('cpu',)

ATTN_PROVIDERS names importable modules, comma-separated, each with a
`PROVIDERS: dict[str, list[Provider]]` from family name to what it adds.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import replace
from functools import cache

from planner.errors import EnvironmentProblem, UnknownName
from profiler.providers.dense import DENSE
from profiler.providers.experts import EXPERTS
from profiler.providers.full_attention import FULL_ATTENTION
from profiler.providers.gated_deltanet import GATED_DELTANET, KDA
from profiler.providers.linear_attention import LIGHTNING, LINEAR_ATTENTION
from profiler.providers.mamba2 import MAMBA2
from profiler.providers.mla import MLA
from profiler.providers.short_convolution import SHORT_CONVOLUTION
from profiler.providers.sliding_window import SLIDING_WINDOW
from profiler.providers.spec import Call, Family, Inputs, Kernel, Output, Provider

ENV_VARIABLE = "ATTN_PROVIDERS"

_BUILT_IN = (
    FULL_ATTENTION,
    SLIDING_WINDOW,
    LINEAR_ATTENTION,
    LIGHTNING,
    GATED_DELTANET,
    KDA,
    MAMBA2,
    MLA,
    SHORT_CONVOLUTION,
    DENSE,
    EXPERTS,
)


@cache
def families() -> dict[str, Family]:
    """All families, those of ATTN_PROVIDERS' modules added.

    Raises: EnvironmentProblem if a named module cannot be imported or has no PROVIDERS.
    """
    found = {family.name: family for family in _BUILT_IN}
    for name in filter(None, os.environ.get(ENV_VARIABLE, "").split(",")):
        try:
            added = importlib.import_module(name.strip()).PROVIDERS
        except (ImportError, AttributeError) as error:
            raise EnvironmentProblem(f"{ENV_VARIABLE}: cannot use {name!r}: {error}") from None
        for family, providers in added.items():
            if family not in found:
                raise UnknownName(f"family in {name}", family, found)
            base = found[family]
            found[family] = replace(base, providers=(*base.providers, *providers))
    return found


def get_family(name: str) -> Family:
    """Raises UnknownName, listing the registered families."""
    known = families()
    try:
        return known[name]
    except KeyError:
        raise UnknownName("mixer", name, known) from None


__all__ = [
    "Call",
    "Family",
    "Inputs",
    "Kernel",
    "Output",
    "Provider",
    "families",
    "get_family",
]
