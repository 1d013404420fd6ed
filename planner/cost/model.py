"""Whole-model cost: what a deployment's prefill and decode take, part by part.

A model is the sum of its layers' kernels: mixers by kind, convolutions, projections, channel
mixers and the LM head. Each part carries its interval and basis. Norms, residuals and sampling
are not modelled; measured stacks show what that leaves out.

    TTFT = prefill of one request alone, its prefix-cache hits already there (no queueing).
    TPOT = one decode step of `batch` sequences at their mean context.
    GPU seconds per request = prefill(new | cached) + output x TPOT(b) / b.

Interference of prefills with decodes is not modelled: TPOT is that of undisturbed decoding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from planner.architecture import Architecture, Moe
from planner.cost.basis import Basis, worst
from planner.cost.kernel import KernelCost
from planner.cost.memory import PAGED, EngineRules, Memory, MemoryModel
from planner.errors import UsageError
from planner.hardware import Hardware
from planner.mixers import Gemm, get_mixer
from planner.workload import ConvOp, DenseOp, MixerOp, Op, Traffic, dtype_bytes

Role = Literal["mixer", "convolution", "projection", "channel", "lm_head", "all_reduce"]


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A model on a device: dtypes, parallelism, and which provider runs each mixer.

    `providers` maps a mixer's name to a provider; others take the fastest measured one.
    """

    hardware: Hardware
    compute_dtype: str = "bf16"
    weights_dtype: str = "bf16"
    kv_dtype: str = "bf16"
    state_dtype: str = "fp32"
    tensor_parallel: int = 1
    mode: str | None = None
    providers: Mapping[str, str] = field(default_factory=dict, hash=False)
    rules: EngineRules = PAGED

    def __post_init__(self) -> None:
        if self.tensor_parallel < 1:
            raise UsageError(f"tensor_parallel must be at least 1, got {self.tensor_parallel}")
        for dtype in (self.compute_dtype, self.weights_dtype, self.kv_dtype, self.state_dtype):
            dtype_bytes(dtype)

    def memory_model(self, arch: Architecture) -> MemoryModel:
        return MemoryModel(
            arch=arch,
            memory_bytes=self.hardware.memory_bytes,
            weights_dtype=self.weights_dtype,
            kv_dtype=self.kv_dtype,
            state_dtype=self.state_dtype,
            tensor_parallel=self.tensor_parallel,
            rules=self.rules,
        )


@dataclass(frozen=True, kw_only=True)
class Part:
    """One kind of kernel call of a phase: `count` calls of `seconds` in all."""

    role: Role
    name: str
    count: int
    seconds: float
    low: float
    high: float
    basis: Basis
    provider: str
    error_group: str


@dataclass(frozen=True, kw_only=True)
class PhaseCost:
    """A sum of parts. Seconds, with an 80 % interval."""

    parts: tuple[Part, ...]
    blocked: str = ""

    @property
    def seconds(self) -> float:
        return math.nan if self.blocked else sum(p.seconds for p in self.parts)

    @property
    def basis(self) -> Basis:
        return worst(p.basis for p in self.parts)

    @property
    def low(self) -> float:
        return self.seconds - self._spread("low")

    @property
    def high(self) -> float:
        return self.seconds + self._spread("high")

    def _spread(self, side: Literal["low", "high"]) -> float:
        return math.sqrt(sum(half**2 for half in self.half_widths(side).values()))

    def half_widths(self, side: Literal["low", "high"]) -> dict[str, float]:
        """Half-width of the interval by error group.

        Errors of one kernel are shared by all its layers and add linearly; different kernels' are
        independent and add in quadrature.
        """
        groups: dict[str, float] = {}
        for p in self.parts:
            half = p.seconds - p.low if side == "low" else p.high - p.seconds
            groups[p.error_group] = groups.get(p.error_group, 0.0) + half
        return groups

    def by_role(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for p in self.parts:
            found[p.role] = found.get(p.role, 0.0) + p.seconds
        return found

    def basis_shares(self) -> dict[Basis, float]:
        """Share of the time that rests on each basis."""
        total = sum(p.seconds for p in self.parts)
        found: dict[Basis, float] = {}
        for p in self.parts:
            found[p.basis] = found.get(p.basis, 0.0) + p.seconds / total
        return dict(sorted(found.items()))

    def ceiling(self, role: Role = "mixer") -> float:
        """Amdahl: how many times faster if this role were free."""
        rest = sum(p.seconds for p in self.parts if p.role != role)
        return math.inf if rest == 0 else self.seconds / rest


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """What one architecture costs under one traffic on one deployment."""

    arch: Architecture
    traffic: Traffic
    prefill: PhaseCost
    decode: PhaseCost
    batch_size: int
    max_concurrency: int
    memory: Memory

    @property
    def ttft_s(self) -> float:
        return self.prefill.seconds

    @property
    def tpot_s(self) -> float:
        return self.decode.seconds

    @property
    def gpu_seconds_per_request(self) -> float:
        """prefill + output x TPOT / batch; NaN if the model does not fit."""
        if self.batch_size == 0:
            return math.nan
        return self.ttft_s + self.traffic.output_tokens * self.tpot_s / self.batch_size

    def gpu_seconds_interval(self) -> tuple[float, float]:
        """80 % interval; a kernel's errors in prefill and in decode are taken as independent."""
        if self.batch_size == 0:
            return math.nan, math.nan
        middle = self.gpu_seconds_per_request
        down, up = (
            math.sqrt(sum(half**2 for half in self._half_widths(side).values()))
            for side in ("low", "high")
        )
        return middle - down, middle + up

    def _half_widths(self, side: str) -> dict[tuple[str, str], float]:
        weight = self.traffic.output_tokens / self.batch_size
        phases = {"prefill": (self.prefill, 1.0), "decode": (self.decode, weight)}
        return {
            (name, group): scale * half
            for name, (phase, scale) in phases.items()
            for group, half in phase.half_widths("low" if side == "low" else "high").items()
        }

    def surely_cheaper_than(self, other: ModelCost) -> bool:
        """Whether GPU seconds per request are lower at 80 %, errors of shared kernels cancelling.

        A group's error is one relative error, so of two models it moves both alike: only the
        difference of what they spend in it is uncertain.
        """
        gain = other.gpu_seconds_per_request - self.gpu_seconds_per_request
        if not math.isfinite(gain):
            return math.isfinite(self.gpu_seconds_per_request)
        mine, theirs = self._half_widths("high"), other._half_widths("low")
        spread = math.sqrt(
            sum(
                (mine.get(group, 0.0) - theirs.get(group, 0.0)) ** 2
                for group in mine.keys() | theirs.keys()
            )
        )
        return gain > spread

    @property
    def basis(self) -> Basis:
        return worst((self.prefill.basis, self.decode.basis))

    @property
    def blocked(self) -> str:
        """Why there is no figure, or ""."""
        return self.prefill.blocked or self.decode.blocked


class CostModel:
    """Estimates whole models on one deployment. Kernel predictions are remembered."""

    def __init__(self, kernels: KernelCost, deployment: Deployment) -> None:
        if deployment.tensor_parallel != 1:
            raise UsageError(
                f"latency is modelled on one device: tensor_parallel must be 1, got "
                f"{deployment.tensor_parallel} (memory is modelled at any degree)"
            )
        self.kernels = kernels
        self.deployment = deployment
        self._memo: dict[tuple[object, ...], tuple[Part, str]] = {}

    def estimate(self, arch: Architecture, traffic: Traffic) -> ModelCost:
        """TTFT, TPOT and memory of `arch` under `traffic`; decode batch limited by memory."""
        memory = self.deployment.memory_model(arch)
        fit = memory.max_concurrency(traffic.context)
        batch = min(traffic.concurrency, fit)
        cached = traffic.cached_prompt_tokens
        return ModelCost(
            arch=arch,
            traffic=traffic,
            prefill=self.phase(arch, 1, traffic.prompt_tokens - cached, cached),
            decode=self.phase(arch, max(batch, 1), 1, traffic.mean_decode_context),
            batch_size=batch,
            max_concurrency=fit,
            memory=memory.at(traffic.context, max(batch, 1)),
        )

    def phase(self, arch: Architecture, batch: int, new: int, cached: int) -> PhaseCost:
        """One pass of `new` tokens after `cached` ones for `batch` sequences."""
        parts, blocked = [], ""
        for role, name, count, op, rows in self._calls(arch, batch, new):
            at = (batch, new, cached) if rows is None else (1, max(1, round(rows)), 0)
            part, why = self._part(role, name, count, op, *at)
            parts.append(part)
            blocked = blocked or why
        return PhaseCost(parts=tuple(parts), blocked=blocked)

    def _calls(
        self, arch: Architecture, batch: int, new: int
    ) -> Iterator[tuple[Role, str, int, Op, float | None]]:
        """(role, name, calls, operation, rows): rows is None where batch and context matter."""
        tokens = batch * new
        for spec, layers in arch.counts().items():
            mixer = get_mixer(spec.mixer)
            yield "mixer", spec.mixer, layers, MixerOp(spec), None
            channels = mixer.conv_channels(spec)
            if channels:
                yield "convolution", spec.mixer, layers, ConvOp(channels, spec.conv_size), None
            for gemm in mixer.projections(spec, arch.hidden_size):
                yield (
                    "projection",
                    f"{spec.mixer} {gemm.role}",
                    layers,
                    DenseOp.of(gemm),
                    tokens,
                )
        dense, sparse = arch.channel_layers()
        if arch.mlp is not None and dense:
            for gemm in arch.mlp.projections(arch.hidden_size):
                yield "channel", gemm.role, dense, DenseOp.of(gemm), tokens
        if arch.moe is not None and sparse:
            moe = arch.moe
            touched = experts_touched(moe, tokens)
            for gemm in moe.expert(arch.hidden_size):
                rows = tokens * moe.top_k / touched
                yield "channel", f"experts {gemm.role}", sparse, wide(gemm, touched), rows
            for gemm in (*moe.shared(arch.hidden_size), moe.router(arch.hidden_size)):
                yield "channel", gemm.role, sparse, DenseOp.of(gemm), tokens
        head = Gemm(role="lm_head", in_features=arch.hidden_size, out_features=arch.vocab_size)
        yield "lm_head", "lm_head", 1, DenseOp.of(head), batch

    def _part(
        self, role: Role, name: str, count: int, op: Op, batch: int, new: int, cached: int
    ) -> tuple[Part, str]:
        key = (role, name, op, batch, new, cached)
        if key not in self._memo:
            self._memo[key] = self._predict(role, name, op, batch, new, cached)
        one, blocked = self._memo[key]
        scale = float(count)
        return Part(
            role=role,
            name=name,
            count=count,
            seconds=one.seconds * scale,
            low=one.low * scale,
            high=one.high * scale,
            basis=one.basis,
            provider=one.provider,
            error_group=one.error_group,
        ), blocked

    def _predict(
        self, role: Role, name: str, op: Op, batch: int, new: int, cached: int
    ) -> tuple[Part, str]:
        wanted = self.deployment.providers.get(op.family)
        found = self.kernels.predict_one(
            op,
            batch,
            new,
            cached,
            dtype=self.deployment.compute_dtype,
            provider=wanted,
            mode=self.deployment.mode,
        )
        ratio = self._stored_dtype_ratio(op, batch, new, cached)
        blocked = ""
        if found.outcome != "ok":
            blocked = (
                f"{op.short()} at batch {batch}, {new} new after {cached} cached tokens: "
                f"{found.outcome}"
            )
        part = Part(
            role=role,
            name=name,
            count=1,
            seconds=found.latency_s * ratio,
            low=found.low_s * ratio,
            high=found.high_s * ratio,
            basis=found.basis if ratio == 1.0 else worst((found.basis, Basis.SCALED)),
            provider=found.provider,
            error_group=found.error_group,
        )
        return part, blocked

    def _stored_dtype_ratio(self, op: Op, batch: int, new: int, cached: int) -> float:
        """Time with weights or cache stored in another dtype over that in the compute dtype.

        The ratio of the two roofline bounds: traffic shrinks with the stored bytes, arithmetic
        runs at the stored dtype's rate if the device has such a unit, else at the compute rate.
        """
        d = self.deployment
        stored = d.weights_dtype if isinstance(op, DenseOp) else d.kv_dtype
        if stored == d.compute_dtype or isinstance(op, ConvOp):
            return 1.0
        if isinstance(op, MixerOp) and get_mixer(op.spec.mixer).kind == "recurrent":
            return 1.0
        flops = op.model_flops(batch, new, cached)
        as_computed = op.min_bytes(batch, new, cached, dtype_bytes(d.compute_dtype))
        saved = stored_elements(op, batch, cached) * (
            dtype_bytes(d.compute_dtype) - dtype_bytes(stored)
        )
        rate = stored if isinstance(op, DenseOp) else d.compute_dtype
        before = d.hardware.lower_bound_s(flops, as_computed, d.compute_dtype)
        after = d.hardware.lower_bound_s(flops, max(as_computed - saved, 0.0), rate)
        return float(after / before)


def stored_elements(op: Op, batch: int, cached: int) -> float:
    """Elements of a call that are kept in memory between steps: weights, or keys and values."""
    if isinstance(op, DenseOp):
        return float(op.in_features * op.out_features)
    if isinstance(op, MixerOp):
        return float(batch * get_mixer(op.spec.mixer).kv_cache_bytes(op.spec, cached, 1.0))
    return 0.0


def wide(gemm: Gemm, copies: float) -> DenseOp:
    """`copies` matrices of one kind side by side, as one.

    The touched experts of a layer move as many bytes and do as many FLOPs as such a matrix.
    """
    return DenseOp(gemm.in_features, max(1, math.ceil(gemm.out_features * copies)))


def experts_touched(moe: Moe, tokens: int) -> float:
    """Experts that at least one of `tokens` tokens is routed to, on average.

    Assumes independent, uniform routing: E (1 - (1 - k/E)^tokens). Real routers are skewed, so
    this is an upper estimate of the weights read.
    """
    return moe.num_experts * (1.0 - (1.0 - moe.top_k / moe.num_experts) ** tokens)


__all__ = [
    "CostModel",
    "Deployment",
    "Memory",
    "MemoryModel",
    "ModelCost",
    "Part",
    "PhaseCost",
    "experts_touched",
    "wide",
]
