"""Whole-model cost: what a deployment's prefill and decode take, part by part.

A model is the sum of its layers' kernels (`calls`): mixers by kind, convolutions, projections,
channel mixers, the LM head, all-reduces between devices, and in eager mode what launching adds.
Each part carries its interval, basis and provider. Norms, residuals and sampling are not modelled;
measured stacks show what that leaves out.

    TTFT = prefill of one request alone, its prefix-cache hits already there (no queueing).
    TPOT = one decode step of `batch` sequences at their mean context.
    GPU seconds per request = devices x (prefill(new | cached) + output x TPOT(b) / b).

Interference of prefills with decodes is not modelled: TPOT is that of undisturbed decoding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from planner.architecture import Architecture
from planner.catalog import load_engine
from planner.cost.basis import Basis, worst
from planner.cost.calls import MOST_DEVICES, Call, Role, calls
from planner.cost.kernel import KernelCost
from planner.cost.memory import Memory, MemoryModel
from planner.cost.stored import stored_dtype_ratio
from planner.engine import EngineRules
from planner.errors import UnknownName, UsageError
from planner.hardware import Hardware
from planner.mixers import MIXERS
from planner.workload import Phase, Traffic, dtype_bytes

FAMILIES = (*MIXERS, "dense", "short_convolution", "experts", "all_reduce")
"""What a deployment can name a provider for."""


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A model on a device: dtypes, parallelism, and which provider runs each mixer.

    `providers` maps a family ("full_attention", "dense"), or a family in one phase
    ("gated_deltanet/decode"), to a provider; others take the fastest measured one.
    """

    hardware: Hardware
    compute_dtype: str = "bf16"
    weights_dtype: str = "bf16"
    kv_dtype: str = "bf16"
    state_dtype: str = "fp32"
    tensor_parallel: int = 1
    mode: Literal["eager", "graph"] | None = None
    providers: Mapping[str, str] = field(default_factory=dict, hash=False)
    rules: EngineRules = field(default_factory=load_engine)

    def __post_init__(self) -> None:
        if not 1 <= self.tensor_parallel <= MOST_DEVICES:
            raise UsageError(
                f"tensor_parallel must be between 1 and {MOST_DEVICES}, the devices of one host, "
                f"got {self.tensor_parallel}"
            )
        for dtype in (self.compute_dtype, self.weights_dtype, self.kv_dtype, self.state_dtype):
            dtype_bytes(dtype)
        for key in self.providers:
            if key.partition("/")[0] not in FAMILIES:
                raise UnknownName("mixer or layer", key, FAMILIES)

    def provider_of(self, family: str, phase: Phase) -> str | None:
        """The provider asked for, or None for the fastest."""
        return self.providers.get(f"{family}/{phase}", self.providers.get(family))

    def memory_model(self, arch: Architecture) -> MemoryModel:
        return MemoryModel(
            arch=arch,
            memory_bytes=self.hardware.memory_bytes,
            weights_dtype=self.weights_dtype,
            kv_dtype=self.kv_dtype,
            state_dtype=self.state_dtype,
            model_dtype=self.compute_dtype,
            tensor_parallel=self.tensor_parallel,
            rules=self.rules,
        )


_SIDES: tuple[Literal["low"], Literal["high"]] = ("low", "high")


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


class Throughput(NamedTuple):
    """Tokens per second of one deployment, all its devices together, with an 80 % interval."""

    tokens_per_s: float
    low: float
    high: float

    @classmethod
    def of(cls, tokens: int, phase: PhaseCost) -> Throughput:
        """`tokens` in one pass of `phase`."""
        if tokens == 0 or not phase.seconds > 0:
            return cls(math.nan, math.nan, math.nan)
        slowest, fastest = tokens / phase.high, tokens / phase.low if phase.low > 0 else math.inf
        return cls(tokens / phase.seconds, slowest, fastest)


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """What one architecture costs under one traffic on one deployment of `devices` devices."""

    arch: Architecture
    traffic: Traffic
    prefill: PhaseCost
    decode: PhaseCost
    batch_size: int
    max_concurrency: int
    memory: Memory
    devices: int = 1

    @property
    def ttft_s(self) -> float:
        return self.prefill.seconds

    @property
    def tpot_s(self) -> float:
        return self.decode.seconds

    @property
    def gpu_seconds_per_request(self) -> float:
        """devices x (prefill + output x TPOT / batch); NaN if the model does not fit."""
        if self.batch_size == 0:
            return math.nan
        decode_s = self.traffic.output_tokens * self.tpot_s / self.batch_size
        return self.devices * (self.ttft_s + decode_s)

    @property
    def prefill_throughput(self) -> Throughput:
        """New prompt tokens per second while only prefilling, one prompt at a time."""
        new = self.traffic.prompt_tokens - self.traffic.cached_prompt_tokens
        return Throughput.of(new if self.batch_size else 0, self.prefill)

    @property
    def decode_throughput(self) -> Throughput:
        """Output tokens per second of all sequences of the batch, undisturbed by prefills."""
        return Throughput.of(self.batch_size, self.decode)

    def gpu_seconds_interval(self) -> tuple[float, float]:
        """80 % interval; a kernel's errors in prefill and in decode are taken as independent."""
        if self.batch_size == 0:
            return math.nan, math.nan
        middle = self.gpu_seconds_per_request
        down, up = (
            math.sqrt(sum(half**2 for half in self.half_widths(side).values())) for side in _SIDES
        )
        return middle - down, middle + up

    def half_widths(self, side: Literal["low", "high"]) -> dict[tuple[str, str], float]:
        """Half-width of the GPU seconds per request by (phase, error group)."""
        decode = self.devices * self.traffic.output_tokens / self.batch_size
        phases = {"prefill": (self.prefill, float(self.devices)), "decode": (self.decode, decode)}
        return {
            (name, group): scale * half
            for name, (phase, scale) in phases.items()
            for group, half in phase.half_widths(side).items()
        }

    def surely_cheaper_than(self, other: ModelCost) -> bool:
        """Whether GPU seconds per request are lower at 80 %, errors of shared kernels cancelling.

        A group's error is one relative error, so of two models it moves both alike: only the
        difference of what they spend in it is uncertain.
        """
        gain = other.gpu_seconds_per_request - self.gpu_seconds_per_request
        if not math.isfinite(gain):
            return math.isfinite(self.gpu_seconds_per_request)
        mine, theirs = self.half_widths("high"), other.half_widths("low")
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
        self.kernels = kernels
        self.deployment = deployment
        self._memo: dict[tuple[object, ...], tuple[Part, str]] = {}

    def estimate(self, arch: Architecture, traffic: Traffic) -> ModelCost:
        """TTFT, TPOT and memory of `arch` under `traffic`; decode batch limited by memory.

        Raises: UsageError where the model cannot be split over the deployment's devices.
        """
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
            devices=self.deployment.tensor_parallel,
        )

    def phase(self, arch: Architecture, batch: int, new: int, cached: int) -> PhaseCost:
        """One pass of `new` tokens after `cached` ones for `batch` sequences."""
        phase: Phase = "decode" if new == 1 and cached > 0 else "prefill"
        parts, blocked = [], ""
        for call in calls(arch, self.deployment.tensor_parallel):
            part, why = self._part(call, phase, call.at(batch, new, cached, arch.hidden_size))
            parts.append(part)
            blocked = blocked or why
        return PhaseCost(parts=tuple(parts), blocked=blocked)

    def _part(self, call: Call, phase: Phase, at: tuple[int, int, int]) -> tuple[Part, str]:
        key = (call, phase, at)
        if key not in self._memo:
            self._memo[key] = self._predict(call, phase, at)
        return self._memo[key]

    def _predict(self, call: Call, phase: Phase, at: tuple[int, int, int]) -> tuple[Part, str]:
        d = self.deployment
        found = self.kernels.predict_one(
            call.op,
            *at,
            dtype=d.compute_dtype,
            provider=d.provider_of(call.op.family, phase),
            mode=d.mode,
        )
        ratio = stored_dtype_ratio(call.op, at, d)
        blocked = ""
        if found.outcome != "ok":
            batch, new, cached = at
            blocked = (
                f"{call.op.short()} at batch {batch}, {new} new after {cached} cached tokens: "
                f"{found.outcome}"
            )
        scale = call.count * ratio
        part = Part(
            role=call.role,
            name=call.name,
            count=call.count,
            seconds=found.latency_s * scale,
            low=found.low_s * scale,
            high=found.high_s * scale,
            basis=found.basis if ratio == 1.0 else worst((found.basis, Basis.SCALED)),
            provider=found.provider,
            error_group=found.error_group,
        )
        return part, blocked


__all__ = [
    "CostModel",
    "Deployment",
    "Memory",
    "MemoryModel",
    "ModelCost",
    "Part",
    "PhaseCost",
    "Throughput",
]
