"""Basis: how a cost came to be. The worst basis in a sum is shown on the sum."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum


class Basis(IntEnum):
    """From best to worst, so that the worst of several is their maximum."""

    MEASURED = 0
    INTERPOLATED = 1
    SCALED = 2
    EXTRAPOLATED = 3
    ANALYTIC = 4

    @property
    def label(self) -> str:
        return self.name.lower()


def worst(bases: Iterable[Basis]) -> Basis:
    return max(bases, default=Basis.MEASURED)
