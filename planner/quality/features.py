"""What of an architecture bears on accuracy: mixer, how many full layers, where, window, state.

>>> MixFeatures.of(arch).placement                                    # doctest: +SKIP
'uniform'
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from planner.architecture import Architecture
from planner.mixers import get_mixer
from planner.store.layer_facts import LayerFacts

Band = Literal["full", "dense", "thin", "sparse", "pure"]

DENSE_SHARE, THIN_SHARE = 1 / 7, 1 / 8
"""Up to 6:1 full layers are dense, at 7:1 thin, beyond sparse. Accuracy is flat down to 6:1 or 7:1
in every published sweep (Wang et al. 2025, table 5; Kimi Linear, table 1; Mamba-2, table 2)."""


@dataclass(frozen=True, kw_only=True)
class MixFeatures:
    """The layers that have a mixer, counted from 0. `mixer` is "" for full attention throughout;
    of several linear mixers the main one. `params_b` and `train_tokens_b` in 10⁹, None where
    unknown."""

    mixer: str
    kind: Literal["full", "windowed", "recurrent"]
    n_layers: int
    n_full: int
    full_indices: tuple[int, ...]
    placement: str
    window: int | None = None
    state_elements: int = 0
    params_b: float | None = None
    train_tokens_b: float | None = None
    origin: str = "scratch"

    @classmethod
    def of(cls, arch: Architecture) -> MixFeatures:
        facts = LayerFacts.of(arch)
        return cls(
            mixer=facts.linear.mixer if facts.linear else "",
            kind=get_mixer(facts.linear.mixer).kind if facts.linear else "full",
            n_layers=facts.n_layers,
            n_full=facts.n_full,
            full_indices=facts.full_indices,
            placement=facts.placement,
            window=facts.linear.window if facts.linear else None,
            state_elements=facts.state_elements,
            params_b=arch.parameters() / 1e9 if arch.hidden_size else None,
            origin=arch.origin,
        )

    @property
    def full_share(self) -> float:
        return self.n_full / self.n_layers

    @property
    def band(self) -> Band:
        return band_of(self.full_share)


def band_of(full_share: float) -> Band:
    """full (all layers), dense (1 in 7 or more), thin (1 in 8), sparse (fewer), pure (none)."""
    if full_share >= 1:
        return "full"
    if full_share <= 0:
        return "pure"
    if full_share >= DENSE_SHARE - 1e-9:
        return "dense"
    return "thin" if full_share >= THIN_SHARE - 1e-9 else "sparse"
