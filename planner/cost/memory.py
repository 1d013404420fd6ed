"""Memory of a deployment: weights, KV cache, recurrent state, workspace; what fits.

All sizes are bytes on one device of `tensor_parallel`. "Ideal" bytes are what the formulas count;
"reserved" bytes are what an engine sets aside by its rules (`data/engines`): whole pages, windowed
layers kept longer than their window, several copies of a state, pools of fixed size.

    KV(context) of a pattern = fixed + slope x context once every window is full.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from planner.architecture import Architecture
from planner.catalog import load_engine
from planner.engine import IDEAL, EngineRules
from planner.mixers import MixerSpec, get_mixer
from planner.workload import dtype_bytes

UNBOUNDED = 1 << 40
"""Where nothing grows there is no longest context; this stands for it."""

Limit = Literal["weights", "kv_cache", "state", "memory"]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device, for `batch_size` sequences of `context` tokens.

    `kv_limit` and `state_limit` are the pools that an engine fixes at start; infinite without.
    """

    batch_size: int
    context: int
    weights: float
    kv_cache: float
    state: float
    workspace: float
    capacity: float
    kv_limit: float = math.inf
    state_limit: float = math.inf

    @property
    def total(self) -> float:
        return self.weights + self.kv_cache + self.state + self.workspace

    @property
    def per_sequence(self) -> float:
        return (self.kv_cache + self.state) / self.batch_size

    @property
    def fits(self) -> bool:
        return (
            self.total <= self.capacity
            and self.kv_cache <= self.kv_limit
            and self.state <= self.state_limit
        )


@dataclass(frozen=True)
class _Layers:
    """The layers of one kind as an engine keeps them: each page of `page_bytes` holds
    `page_tokens` tokens of one layer, or one copy of its state where there are no tokens."""

    spec: MixerSpec
    layers: int
    page_bytes: float
    page_tokens: int


@dataclass(frozen=True, kw_only=True)
class MemoryModel:
    """An architecture's bytes as functions of context and batch."""

    arch: Architecture
    memory_bytes: float
    weights_dtype: str = "bf16"
    kv_dtype: str = "bf16"
    state_dtype: str = "fp32"
    model_dtype: str = "bf16"
    tensor_parallel: int = 1
    rules: EngineRules = field(default_factory=load_engine)

    @property
    def capacity(self) -> float:
        return self.rules.capacity(self.memory_bytes)

    # What does not grow

    def weights_bytes(self) -> float:
        """Parameters in the weights' dtype; embeddings and LM head stay in bf16."""
        arch = self.arch
        embedding = arch.vocab_size * arch.hidden_size * (1 if arch.tied_embeddings else 2)
        body = arch.parameters() - embedding
        kept = max(dtype_bytes(self.weights_dtype), 2.0)
        return (body * dtype_bytes(self.weights_dtype) + embedding * kept) / self.tensor_parallel

    def workspace_bytes(self) -> float:
        """Activations of one prefill chunk: residual twice, and the widest projection, in bf16.

        Nothing where the engine keeps them in the memory that it leaves free.
        """
        if not self.rules.activations_inside:
            return 0.0
        arch = self.arch
        widths = [
            g.out_features
            for spec in arch.counts()
            for g in get_mixer(spec.mixer).projections(spec, arch.hidden_size)
        ]
        if arch.mlp is not None:
            widths += [g.out_features for g in arch.mlp.projections(arch.hidden_size)]
        if arch.moe is not None:
            widths += [arch.moe.top_k * g.out_features for g in arch.moe.expert(arch.hidden_size)]
        a_token = 2.0 * (2 * arch.hidden_size + max(widths) / self.tensor_parallel)
        return self.rules.prefill_chunk * a_token

    # What a sequence takes

    def kv_bytes(self, context: int) -> float:
        """Keys and values of one sequence on one device at `context` tokens."""
        return sum(
            kind.layers * kind.page_bytes * self._pages(kind, context)
            for kind in self._kinds
            if kind.page_tokens
        )

    def state_bytes(self) -> float:
        """Recurrent and convolution state that one sequence holds on one device, all its slots."""
        return self.rules.state_slots * sum(
            kind.layers * kind.page_bytes for kind in self._kinds if not kind.page_tokens
        )

    def _pages(self, kind: _Layers, context: int) -> int:
        window, kept = kind.spec.window, context
        if window is not None:
            by_share = math.ceil(context * self.rules.window_share)
            kept = min(context, max(window + self.rules.window_extra_tokens, by_share))
        return math.ceil(kept / kind.page_tokens)

    @cached_property
    def _kinds(self) -> tuple[_Layers, ...]:
        """The pages of every layer kind, each kind by itself or all of one size."""
        separate = tuple(
            _Layers(spec, layers, *self._page(spec)) for spec, layers in self.arch.counts().items()
        )
        return _share_pages(separate, self.rules.page_tokens) if self._shared else separate

    @property
    def _shared(self) -> bool:
        return self.rules.shared_pages and len(self.arch.counts()) > 1

    def _page(self, spec: MixerSpec) -> tuple[float, int]:
        """(bytes, tokens) of a page of one layer; 0 tokens for a state."""
        token_bytes = self._token_bytes(spec)
        if token_bytes:
            return token_bytes * self.rules.page_tokens, self.rules.page_tokens
        return self._layer_state_bytes(spec), 0

    def _token_bytes(self, spec: MixerSpec) -> float:
        per_token = get_mixer(spec.mixer).kv_cache_bytes(spec, 1, dtype_bytes(self.kv_dtype))
        return float(per_token) * self._kv_share(spec)

    def _kv_share(self, spec: MixerSpec) -> float:
        """Share of a layer's KV on one device: heads split until there is one each, then repeat.

        MLA's latent has no heads to split: every device holds it whole.
        """
        if spec.kv_lora_rank:
            return 1.0
        return math.ceil(spec.num_k_heads / self.tensor_parallel) / spec.num_k_heads

    def _layer_state_bytes(self, spec: MixerSpec) -> float:
        mixer, elem = get_mixer(spec.mixer), dtype_bytes(self.state_dtype)
        saved = 0.0
        if self.rules.conv_dtype == "model":
            tail = mixer.conv_channels(spec) * max(spec.conv_size - 1, 0)
            saved = tail * (elem - dtype_bytes(self.model_dtype))
        return (mixer.state_bytes(spec, elem) - saved) / self.tensor_parallel

    # What fits

    def at(self, context: int, batch_size: int) -> Memory:
        kv_limit, state_limit = self._pools
        return Memory(
            batch_size=batch_size,
            context=context,
            weights=self.weights_bytes(),
            kv_cache=batch_size * self.kv_bytes(context),
            state=batch_size * self.state_bytes(),
            workspace=self.workspace_bytes(),
            capacity=self.capacity,
            kv_limit=kv_limit,
            state_limit=state_limit,
        )

    @cached_property
    def free_bytes(self) -> float:
        """What is left for KV cache and state; negative if the weights do not fit."""
        return self.capacity - self.weights_bytes() - self.workspace_bytes()

    @cached_property
    def _pools(self) -> tuple[float, float]:
        """Bytes that KV cache and state may take at most, each by itself."""
        ratio = self.rules.state_pool_ratio
        if ratio is None or not self.state_bytes() or not self.kv_bytes(1):
            return math.inf, math.inf
        free = max(self.free_bytes, 0.0)
        return free / (1 + ratio), free * ratio / (1 + ratio)

    def max_concurrency(self, context: int) -> int:
        """Sequences of `context` tokens that fit; 0 if the weights alone do not leave room."""
        return self._room(context)[0]

    def limited_by(self, context: int) -> Limit:
        """What runs out first as sequences of `context` tokens are added."""
        return self._room(context)[1]

    def _room(self, context: int) -> tuple[int, Limit]:
        if self.free_bytes <= 0:
            return 0, "weights"
        kv, state = self.kv_bytes(context), self.state_bytes()
        kv_limit, state_limit = self._pools
        needs: tuple[tuple[float, float, Limit], ...] = (
            (self.free_bytes, kv + state, "memory"),
            (kv_limit, kv, "kv_cache"),
            (state_limit, state, "state"),
        )
        rooms = [
            (int(room // need), what) for room, need, what in needs if need and room < math.inf
        ]
        return min(rooms, default=(UNBOUNDED, "memory"))

    def max_context(self, batch_size: int = 1) -> int:
        """Longest context at which `batch_size` sequences fit; 0 if none, found by bisection."""
        if not self.at(1, batch_size).fits:
            return 0
        low, high = 1, UNBOUNDED
        if self.at(high, batch_size).fits:
            return high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.at(middle, batch_size).fits else (low, middle)
        return low

    def kv_line(self, context: int) -> tuple[float, float]:
        """(fixed bytes, bytes per further token) of one sequence's KV around `context` tokens."""
        slope = sum(
            kind.layers * kind.page_bytes / kind.page_tokens * self._growth(kind.spec, context)
            for kind in self._kinds
            if kind.page_tokens
        )
        page = math.lcm(*(kind.page_tokens or 1 for kind in self._kinds))
        full_pages = math.ceil(context / page) * page
        return self.kv_bytes(full_pages) - slope * full_pages, slope

    def _growth(self, spec: MixerSpec, context: int) -> float:
        """Tokens that a layer keeps of one more: 1, or a window's share once it is full."""
        least = (spec.window or 0) + self.rules.window_extra_tokens
        if spec.window is None or context < least:
            return 1.0
        return self.rules.window_share if context * self.rules.window_share >= least else 0.0


def _share_pages(kinds: tuple[_Layers, ...], step: int) -> tuple[_Layers, ...]:
    """One page size for all: as many tokens, in steps, as hold the largest layer state.

    Layers form groups of as many as the rarest kind has (or the commonest, if that is less than
    half as many again); every group has its own page table, so a padded group costs a whole one.
    """
    states = [kind.page_bytes for kind in kinds if not kind.page_tokens]
    caches = [kind.page_bytes for kind in kinds if kind.page_tokens]
    page_bytes = max(states, default=0.0)
    if caches:
        page_bytes = max(caches) * max(1, math.ceil(page_bytes / max(caches)))
    group = _group_size([kind.layers for kind in kinds])
    return tuple(
        _Layers(
            kind.spec,
            math.ceil(kind.layers / group) * group,
            page_bytes,
            int(page_bytes // (kind.page_bytes / step)) if kind.page_tokens else 0,
        )
        for kind in kinds
    )


def _group_size(layers: list[int]) -> int:
    rarest, commonest = min(layers), max(layers)
    return commonest if commonest < 1.5 * rarest else rarest


def break_even_context(
    full: MixerSpec, recurrent: MixerSpec, *, kv_elem: float = 2.0, state_elem: float = 4.0
) -> float:
    """Context from which a decode step reads less state than keys and values.

    A step reads and writes the state (2 x bytes) where attention reads the whole cache:
    context* = 2 state bytes / KV bytes per token. Overheads ignored: they rule at small batch.
    """
    state = get_mixer(recurrent.mixer).state_bytes(recurrent, state_elem)
    return 2.0 * state / float(get_mixer(full.mixer).kv_cache_bytes(full, 1, kv_elem))


__all__ = [
    "IDEAL",
    "UNBOUNDED",
    "EngineRules",
    "Limit",
    "Memory",
    "MemoryModel",
    "break_even_context",
]
