"""What an architecture's layer list says in the terms of the evidence.

>>> placement_of(8, (3, 7))
'uniform'
>>> placement_of(8, (0, 1))
'start'
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

from planner.architecture import Architecture
from planner.mixers import MixerSpec, get_mixer
from planner.mixers.recurrent import state_elements


@dataclass(frozen=True, kw_only=True)
class LayerFacts:
    """The layers that have a mixer, counted from 0. `linear` is None for full attention
    throughout, `full` where no layer is full.

    Of several linear mixers the one in most layers counts, a recurrent one before a window.
    `state_elements` is the recurrent state of all layers together.
    """

    linear: MixerSpec | None
    second: MixerSpec | None
    full: MixerSpec | None
    n_layers: int
    full_indices: tuple[int, ...]
    placement: str
    state_elements: int

    @classmethod
    def of(cls, arch: Architecture) -> LayerFacts:
        specs = [spec for _, spec in arch.mixer_layers()]
        kinds = [get_mixer(spec.mixer).kind for spec in specs]
        full_at = tuple(i for i, kind in enumerate(kinds) if kind == "full")
        linear = ranked([s for s, kind in zip(specs, kinds, strict=True) if kind != "full"])
        recurrent = [s for s, kind in zip(specs, kinds, strict=True) if kind == "recurrent"]
        return cls(
            linear=linear[0] if linear else None,
            second=linear[1] if len(linear) > 1 else None,
            full=specs[full_at[0]] if full_at else None,
            n_layers=len(specs),
            full_indices=full_at,
            placement=placement_of(len(specs), full_at),
            state_elements=sum(state_elements(spec) for spec in recurrent),
        )

    @property
    def n_full(self) -> int:
        return len(self.full_indices)

    @property
    def ratio(self) -> str:
        """linear:full in lowest terms: "3:1", "44:5", "1:0", "0:1"."""
        linear = self.n_layers - self.n_full
        common = gcd(linear, self.n_full) or 1
        return f"{linear // common}:{self.n_full // common}"


def ranked(linear: Sequence[MixerSpec]) -> list[MixerSpec]:
    """Distinct linear mixers, recurrent ones first, then by how many layers have them."""
    counts = Counter(linear)
    return sorted(counts, key=lambda s: (get_mixer(s.mixer).kind != "recurrent", -counts[s]))


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
