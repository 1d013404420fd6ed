"""Memory of a deployment: weights, KV cache, recurrent state, workspace; what fits.

All sizes are bytes on one device of `tensor_parallel`. "Ideal" bytes are what the formulas count;
"reserved" bytes are what an engine sets aside (whole pages, windowed layers kept at full length).

    KV(context) of a pattern = fixed + slope x context once every window is full.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from planner.architecture import Architecture
from planner.mixers import MixerSpec, get_mixer
from planner.workload import dtype_bytes

PREFILL_CHUNK = 8192
"""Tokens an engine prefills at once, which bounds activations (vLLM's max_num_batched_tokens on
data-centre GPUs, docs.vllm.ai, 2026)."""


@dataclass(frozen=True, kw_only=True)
class EngineRules:
    """How an engine rounds what it reserves.

    `usable_fraction` of the device's memory may be used; the KV cache comes in pages of
    `page_tokens`; some engines keep windowed layers at full length.
    """

    name: str
    usable_fraction: float
    page_tokens: int
    windowed_at_full_length: bool
    source: str


IDEAL = EngineRules(
    name="ideal",
    usable_fraction=1.0,
    page_tokens=1,
    windowed_at_full_length=False,
    source="formulas alone",
)
PAGED = EngineRules(
    name="paged",
    usable_fraction=0.9,
    page_tokens=16,
    windowed_at_full_length=False,
    source="vLLM defaults gpu_memory_utilization 0.9, block_size 16 (docs.vllm.ai, read 2026-11)",
)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device, for `batch_size` sequences of `context` tokens."""

    batch_size: int
    context: int
    weights: float
    kv_cache: float
    state: float
    workspace: float
    capacity: float

    @property
    def total(self) -> float:
        return self.weights + self.kv_cache + self.state + self.workspace

    @property
    def per_sequence(self) -> float:
        return (self.kv_cache + self.state) / self.batch_size

    @property
    def fits(self) -> bool:
        return self.total <= self.capacity


@dataclass(frozen=True, kw_only=True)
class MemoryModel:
    """An architecture's bytes as functions of context and batch."""

    arch: Architecture
    memory_bytes: float
    weights_dtype: str = "bf16"
    kv_dtype: str = "bf16"
    state_dtype: str = "fp32"
    tensor_parallel: int = 1
    rules: EngineRules = PAGED

    @property
    def capacity(self) -> float:
        return self.memory_bytes * self.rules.usable_fraction

    def weights_bytes(self) -> float:
        """Parameters in the weights' dtype; embeddings and LM head stay in bf16."""
        arch = self.arch
        embedding = arch.vocab_size * arch.hidden_size * (1 if arch.tied_embeddings else 2)
        body = arch.parameters() - embedding
        kept = max(dtype_bytes(self.weights_dtype), 2.0)
        return (body * dtype_bytes(self.weights_dtype) + embedding * kept) / self.tensor_parallel

    def kv_bytes(self, context: int) -> float:
        """Keys and values one sequence stores on one device at `context` tokens."""
        elem = dtype_bytes(self.kv_dtype)
        pages = math.ceil(context / self.rules.page_tokens) * self.rules.page_tokens
        total = 0.0
        for spec, layers in self.arch.counts().items():
            kept = pages
            if spec.window is not None and not self.rules.windowed_at_full_length:
                kept = min(pages, _round_up(spec.window, self.rules.page_tokens))
            per_token = float(get_mixer(spec.mixer).kv_cache_bytes(spec, 1, elem))
            total += layers * kept * per_token * self._kv_share(spec)
        return total

    def _kv_share(self, spec: MixerSpec) -> float:
        """Share of a layer's KV on one device: heads split until there is one each, then repeat.

        MLA's latent has no heads to split: every device holds it whole.
        """
        if spec.kv_lora_rank:
            return 1.0
        return math.ceil(spec.num_k_heads / self.tensor_parallel) / spec.num_k_heads

    def state_bytes(self) -> float:
        """Recurrent and convolution state of one sequence on one device."""
        return self.arch.state_bytes(dtype_bytes(self.state_dtype)) / self.tensor_parallel

    def workspace_bytes(self) -> float:
        """Activations of one prefill chunk: residual twice, and the widest projection, in bf16."""
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
        return PREFILL_CHUNK * 2.0 * (2 * arch.hidden_size + max(widths) / self.tensor_parallel)

    def at(self, context: int, batch_size: int) -> Memory:
        return Memory(
            batch_size=batch_size,
            context=context,
            weights=self.weights_bytes(),
            kv_cache=batch_size * self.kv_bytes(context),
            state=batch_size * self.state_bytes(),
            workspace=self.workspace_bytes(),
            capacity=self.capacity,
        )

    def max_concurrency(self, context: int) -> int:
        """Sequences of `context` tokens that fit; 0 if the weights alone do not leave room."""
        free = self.capacity - self.weights_bytes() - self.workspace_bytes()
        per_sequence = self.kv_bytes(context) + self.state_bytes()
        if free <= 0:
            return 0
        return int(free // per_sequence) if per_sequence > 0 else 1_000_000

    def max_context(self, batch_size: int = 1) -> int:
        """Longest context at which `batch_size` sequences fit; 0 if none, found by bisection."""
        if not self.at(1, batch_size).fits:
            return 0
        low, high = 1, 1 << 40
        if self.at(high, batch_size).fits:
            return high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.at(middle, batch_size).fits else (low, middle)
        return low

    def kv_line(self, context: int) -> tuple[float, float]:
        """(fixed bytes, bytes per further token) of one sequence's KV around `context` tokens."""
        step = self.rules.page_tokens
        start = _round_up(context, step)
        slope = (self.kv_bytes(start + step) - self.kv_bytes(start)) / step
        return self.kv_bytes(start) - slope * start, slope


def break_even_context(full: MixerSpec, recurrent: MixerSpec, *, kv_elem: float = 2.0) -> float:
    """Context from which a decode step reads less state than keys and values.

    A step reads and writes the fp32 state (2 x bytes) where attention reads the whole cache:
    context* = 2 state bytes / KV bytes per token. Overheads ignored: they rule at small batch.
    """
    state = get_mixer(recurrent.mixer).state_bytes(recurrent, 4.0)
    return 2.0 * state / float(get_mixer(full.mixer).kv_cache_bytes(full, 1, kv_elem))


def _round_up(value: int, step: int) -> int:
    return math.ceil(value / step) * step
