"""Engine rules: how a serving engine turns bytes by formula into bytes it sets aside.

Two truths about memory are needed: what the formulas count, and what an engine reserves. The
second differs by engine, version and model, so the rules are data (`data/engines/*.toml`, each
with source and date); this is their shape. What they do is in `planner.cost.memory`.

    >>> IDEAL.page_tokens, IDEAL.usable_fraction
    (1, 1.0)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from planner.errors import UsageError

ConvDtype = Literal["state", "model"]


@dataclass(frozen=True, kw_only=True)
class EngineRules:
    """How an engine rounds what it reserves on one device.

    Memory: `usable_fraction` of the device, less `margin_bytes`, may be used. Activations, those
    of `prefill_chunk` tokens, are part of that where `activations_inside`, else in the rest.

    KV cache: pages of `page_tokens`. A windowed layer keeps its window and `window_extra_tokens`
    more (a chunk being prefilled, a window that straddles pages), and at least `window_share` of
    the full length: 1 is a cache at full length. With `shared_pages` one page size serves every
    layer: it grows, in steps of `page_tokens`, until it holds a layer's recurrent state, and
    layers are managed in groups of equal size, the last one of a kind padded.

    State: `state_slots` copies per running request, those beyond one for prefix reuse. The
    convolution's tail is in the state's dtype or in the `model`'s. With a `state_pool_ratio` the
    state and the KV cache have pools of that ratio, fixed at start: either may run out alone.
    """

    id: str
    name: str
    source: str
    read_on: str
    usable_fraction: float = 1.0
    margin_bytes: int = 0
    prefill_chunk: int = 8192
    activations_inside: bool = True
    page_tokens: int = 1
    shared_pages: bool = False
    window_extra_tokens: int = 0
    window_share: float = 0.0
    state_slots: int = 1
    state_pool_ratio: float | None = None
    conv_dtype: ConvDtype = "state"
    notes: str = ""

    def __post_init__(self) -> None:
        for name in ("page_tokens", "state_slots", "prefill_chunk"):
            _whole(name, getattr(self, name), 1)
        for name in ("margin_bytes", "window_extra_tokens"):
            _whole(name, getattr(self, name), 0)
        _share("usable_fraction", self.usable_fraction)
        if self.window_share:
            _share("window_share", self.window_share)
        if self.state_pool_ratio is not None and not self.state_pool_ratio > 0:
            raise UsageError(f"state_pool_ratio must be above 0, got {self.state_pool_ratio}")
        if self.conv_dtype not in get_args(ConvDtype):
            allowed = " or ".join(get_args(ConvDtype))
            raise UsageError(f"conv_dtype must be {allowed}, got {self.conv_dtype!r}")

    def capacity(self, memory_bytes: float) -> float:
        """Bytes of a device's memory that the engine may use."""
        return max(0.0, memory_bytes * self.usable_fraction - self.margin_bytes)


def _whole(name: str, value: int, least: int) -> None:
    if type(value) is not int or value < least:
        raise UsageError(f"{name} must be a whole number of at least {least}, got {value!r}")


def _share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise UsageError(f"{name} must be above 0 and at most 1, got {value!r}")


IDEAL = EngineRules(
    id="ideal",
    name="ideal",
    source="the formulas alone: every byte of the device, none of them rounded",
    read_on="2026-11-23",
)
