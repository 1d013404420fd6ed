"""The mixers on paper: one record each, found by name.

>>> get_mixer("gated_deltanet").letter
'G'
"""

from __future__ import annotations

from planner.errors import UnknownName
from planner.mixers.attention import FULL_ATTENTION, SLIDING_WINDOW
from planner.mixers.gated_deltanet import GATED_DELTANET, KDA
from planner.mixers.linear_attention import LIGHTNING, LINEAR_ATTENTION
from planner.mixers.mamba2 import MAMBA2
from planner.mixers.mla import MLA
from planner.mixers.spec import Gemm, Mixer, MixerSpec

MIXERS: dict[str, Mixer] = {
    m.name: m
    for m in (
        FULL_ATTENTION,
        SLIDING_WINDOW,
        LINEAR_ATTENTION,
        LIGHTNING,
        GATED_DELTANET,
        KDA,
        MAMBA2,
        MLA,
    )
}


def get_mixer(name: str) -> Mixer:
    """The mixer's record. Raises UnknownName, listing the registered ones."""
    try:
        return MIXERS[name]
    except KeyError:
        raise UnknownName("mixer", name, MIXERS) from None


__all__ = ["MIXERS", "Gemm", "Mixer", "MixerSpec", "get_mixer"]
