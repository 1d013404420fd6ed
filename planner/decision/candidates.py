"""Candidates: the architectures among which a recommendation chooses.

mixer × ratio × placement over one model's skeleton, full attention among them. Placement moves no
cost (the counts are the same), so it is judged on evidence alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from planner.architecture import PLACEMENTS, Architecture, Placement, parse_ratio
from planner.mixers import MIXERS, get_mixer

DEFAULT_RATIOS = ("1:1", "3:1", "5:1", "7:1", "11:1", "1:0")
DEFAULT_MIXERS = tuple(m.name for m in MIXERS.values() if m.kind != "full")
FULL = "full_attention"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One architecture in the running. `is_baseline`: what the others are compared with."""

    arch: Architecture
    mixer: str
    ratio: str
    placement: Placement
    is_baseline: bool = False

    @property
    def label(self) -> str:
        if self.is_baseline:
            return self.arch.describe() if self.arch.linear_mixer else "full attention"
        return f"{self.ratio} {self.mixer}" + ("" if self.is_pure else f", {self.placement}")

    @property
    def is_pure(self) -> bool:
        return parse_ratio(self.ratio)[1] == 0

    @property
    def cost_key(self) -> tuple[str, str]:
        """Candidates that share it cost the same."""
        return self.mixer, self.ratio


def baseline(model: Architecture, intent: Literal["build", "deploy"]) -> Candidate:
    """Build: the skeleton with full attention throughout. Deploy: the model as it is."""
    if intent == "build":
        arch = model.with_mixer(FULL, "0:1", name=f"{model.name} skeleton, full attention")
        return Candidate(arch=arch, mixer=FULL, ratio="0:1", placement="uniform", is_baseline=True)
    mixer = model.linear_mixer or FULL
    ratio = "0:1" if model.linear_mixer is None else model.ratio_label()
    return Candidate(arch=model, mixer=mixer, ratio=ratio, placement="uniform", is_baseline=True)


def candidates(
    model: Architecture,
    *,
    intent: Literal["build", "deploy"] = "build",
    mixers: Sequence[str] = DEFAULT_MIXERS,
    ratios: Sequence[str] = DEFAULT_RATIOS,
    placements: Sequence[Placement] = PLACEMENTS,
) -> list[Candidate]:
    """The baseline first, then every mixer at every ratio and placement.

    Deploying, the others are conversions of the model, not models trained from scratch.
    """
    base = baseline(model, intent)
    found = [base]
    for mixer, ratio, placement in _grid(mixers, ratios, placements):
        arch = model.with_mixer(mixer, ratio, placement=placement)
        if intent == "deploy":
            arch = replace(arch, origin="converted")
        if parse_ratio(ratio)[1] and not arch.num_full_layers:
            continue  # too few layers for the ratio: the pure stack, which has its own line
        if arch.pattern.letters == base.arch.pattern.letters and arch.kinds == base.arch.kinds:
            continue
        found.append(Candidate(arch=arch, mixer=mixer, ratio=ratio, placement=placement))
    return found


def _grid(
    mixers: Iterable[str], ratios: Iterable[str], placements: Sequence[Placement]
) -> Iterator[tuple[str, str, Placement]]:
    for mixer in mixers:
        if get_mixer(mixer).kind == "full":
            continue
        for ratio in ratios:
            linear, full = parse_ratio(ratio)
            if linear == 0:
                continue
            for placement in placements if full else placements[:1]:
                yield mixer, ratio, placement
