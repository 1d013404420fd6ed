"""What of an architecture bears on accuracy: mixer, how many full layers, where, window, state.

>>> MixFeatures.of(arch).placement                                    # doctest: +SKIP
'uniform'
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from planner.architecture import Architecture
from planner.mixers import MixerSpec, get_mixer
from planner.mixers.recurrent import state_elements
from planner.store.evidence_rules import MIXER_KINDS

Band = Literal["full", "dense", "sparse", "pure"]

DENSE_SHARE = 1 / 8
"""From 7:1 on, full layers are dense; accuracy is flat within that band in every published sweep
(Wang et al. 2025, table 5; Kimi Linear, table 1; Mamba-2, table 2)."""


@dataclass(frozen=True, kw_only=True)
class MixFeatures:
    """The layers that have a mixer, counted from 0. `mixer` is "" for full attention throughout.

    Of several linear mixers the one in most layers counts, a recurrent one before a window.
    `state_elements` is the recurrent state of all layers together; `params_b` in 10⁹.
    """

    mixer: str
    kind: Literal["full", "windowed", "recurrent"]
    n_layers: int
    n_full: int
    full_indices: tuple[int, ...]
    placement: str
    window: int | None = None
    state_elements: int = 0
    params_b: float | None = None
    origin: str = "scratch"

    @classmethod
    def of(cls, arch: Architecture) -> MixFeatures:
        specs = [spec for _, spec in arch.mixer_layers()]
        kinds = [get_mixer(spec.mixer).kind for spec in specs]
        full_at = tuple(i for i, kind in enumerate(kinds) if kind == "full")
        linear = main_mixer(
            [spec for spec, kind in zip(specs, kinds, strict=True) if kind != "full"]
        )
        return cls(
            mixer=linear.mixer if linear else "",
            kind=get_mixer(linear.mixer).kind if linear else "full",
            n_layers=len(specs),
            n_full=len(full_at),
            full_indices=full_at,
            placement=placement_of(len(specs), full_at),
            window=linear.window if linear else None,
            state_elements=sum(
                state_elements(spec)
                for spec, kind in zip(specs, kinds, strict=True)
                if kind == "recurrent"
            ),
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
    """full (all layers), dense (1 in 8 or more), sparse (fewer), pure (none)."""
    if full_share >= 1:
        return "full"
    if full_share <= 0:
        return "pure"
    return "dense" if full_share >= DENSE_SHARE - 1e-9 else "sparse"


def main_mixer(linear: Sequence[MixerSpec]) -> MixerSpec | None:
    """The linear mixer of most layers, a recurrent one first; None without any."""
    if not linear:
        return None
    counts = Counter(linear)
    return max(counts, key=lambda s: (MIXER_KINDS[s.mixer] == "recurrent", counts[s]))


def placement_of(n_layers: int, full_at: Sequence[int]) -> str:
    """The placement's name, told from the layer list; "" where all or no layers are full.

    One full layer is "start" or "end" at the very ends, which is also where "uniform" puts it.
    """
    if not full_at or len(full_at) == n_layers:
        return ""
    first, last, n = full_at[0], full_at[-1], len(full_at)
    block = last - first + 1 == n
    if block and first == 0:
        return "start"
    if block and last == n_layers - 1 and (n > 1 or n_layers > 2):
        return "end"
    gaps = [b - a for a, b in zip(full_at, full_at[1:], strict=False)]
    even = not gaps or max(gaps) - min(gaps) <= 1
    if n > 1 and even and first == 0 and last == n_layers - 1:
        return "first_last"
    if (
        n > 1
        and even
        and max(gaps) > 1
        and first <= max(gaps)
        and n_layers - 1 - last <= max(gaps)
    ):
        return "uniform"
    return "middle" if block else "explicit"
