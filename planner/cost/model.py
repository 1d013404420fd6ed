"""Whole-model cost: what a deployment's prefill and decode take, part by part.

A model is the sum of its layers' kernels (`calls`): mixers by kind, convolutions, projections,
channel mixers, the LM head, all-reduces between devices, what streams between them (`streams`),
and in eager mode what launching adds (`launch`). Each part carries interval, basis and provider.

    TTFT = prefill of one request alone, its prefix-cache hits already there (no queueing).
    TPOT = one decode step of `batch` sequences at their mean context.
    GPU seconds per request = devices x (prefill(new | cached) + output x TPOT(b) / b).

Interference of prefills with decodes is not modelled: TPOT is that of undisturbed decoding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from planner.architecture import Architecture
from planner.catalog import load_engine
from planner.cost.basis import Basis, worst
from planner.cost.calls import MOST_DEVICES, Call, Role, calls
from planner.cost.kernel import KernelCost, Single
from planner.cost.launch import GLUE, HostTime
from planner.cost.memory import Memory, MemoryModel
from planner.cost.stored import stored_dtype_change
from planner.cost.streams import LOG_HALF_WIDTH, seconds_of, streams
from planner.engine import EngineRules
from planner.errors import UnknownName, UsageError
from planner.hardware import Hardware
from planner.mixers import MIXERS
from planner.workload import (
    AllReduceOp,
    DenseOp,
    ExpertsOp,
    MixerOp,
    Op,
    Phase,
    Traffic,
    dtype_bytes,
)

At = tuple[int, int, int]
"""(batch, new tokens, cached tokens) of a call."""

PRODUCTS_OF_TRAINING = 3.0
"""Matrix products of a layer of weights in training, over those of its forward pass."""

ONE_MATRIX_HALF_WIDTH = 0.38
"""Half-width that taking experts as one wide matrix adds: 80 % of the imported tables' 298 rows of
experts on four devices are that near (`tests/planner/cost/test_model.py`)."""

TRAINING_HALF_WIDTH = 0.15
"""Half-width that taking those three as alike adds. Not calibrated: layers of weights are not
measured in training so far."""

FAMILIES = (*MIXERS, "dense", "short_convolution", "experts", "all_reduce")
"""What a deployment can name a provider for."""


WEIGHTS_DTYPES = ("fp32", "bf16", "fp16", "fp8", "int8", "int4")
KV_DTYPES = ("fp32", "bf16", "fp16", "fp8")
"""What engines serve: nobody keeps fp64, and no source here tells what int4 keys do to a step."""


def _check_stored(what: str, dtype: str, allowed: tuple[str, ...]) -> None:
    if dtype not in allowed:
        raise UsageError(f"{what} must be stored as {', '.join(allowed)}, got {dtype!r}")


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A model on a device: dtypes, parallelism, and which provider runs each mixer.

    `providers` maps a family ("full_attention", "dense"), or a family in one phase
    ("gated_deltanet/decode"), to a provider; others take the fastest measured one. `mode` is
    "graph" or "eager"; None takes each kernel in the faster one.
    """

    hardware: Hardware
    compute_dtype: str = "bf16"
    weights_dtype: str = "bf16"
    kv_dtype: str = "bf16"
    state_dtype: str = "fp32"
    tensor_parallel: int = 1
    mode: str | None = None
    providers: Mapping[str, str] = field(default_factory=dict, hash=False)
    rules: EngineRules = field(default_factory=load_engine)

    def __post_init__(self) -> None:
        if not 1 <= self.tensor_parallel <= MOST_DEVICES:
            raise UsageError(
                f"tensor_parallel must be between 1 and {MOST_DEVICES}, the devices of one host, "
                f"got {self.tensor_parallel}"
            )
        if self.mode not in (None, "graph", "eager"):
            raise UsageError(f"mode must be graph or eager, got {self.mode!r}")
        for dtype in (self.compute_dtype, self.weights_dtype, self.kv_dtype, self.state_dtype):
            dtype_bytes(dtype)
        _check_stored("weights", self.weights_dtype, WEIGHTS_DTYPES)
        _check_stored("KV cache", self.kv_dtype, KV_DTYPES)
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
    kv_elem_bytes: float = 2.0
    state_elem_bytes: float = 4.0

    @property
    def session_kv_bytes(self) -> float:
        """Keys and values of one sequence at its full length, all devices, by formula."""
        return self.arch.kv_cache_bytes(self.traffic.context, self.kv_elem_bytes)

    @property
    def session_state_bytes(self) -> float:
        """Recurrent and convolution state of one sequence, all devices, by formula."""
        return self.arch.state_bytes(self.state_elem_bytes)

    @property
    def kv_slope_bytes(self) -> float:
        """What the next token adds to the KV cache at a sequence's full length."""
        return self.arch.kv_slope_bytes(self.traffic.context, self.kv_elem_bytes)

    @property
    def ttft_s(self) -> float:
        return self.prefill.seconds

    @property
    def tpot_s(self) -> float:
        """At the batch that fits; NaN where not even one sequence does."""
        return self.decode.seconds if self.batch_size else math.nan

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

    @property
    def basis(self) -> Basis:
        return worst((self.prefill.basis, self.decode.basis))

    @property
    def blocked(self) -> str:
        """Why there is no figure, or ""."""
        return self.prefill.blocked or self.decode.blocked


@dataclass(frozen=True, kw_only=True)
class OneCall:
    """One kernel call: its time on the device, the host's, and why there is none, or ""."""

    single: Single
    host: HostTime
    blocked: str


class CostModel:
    """Estimates whole models on one deployment. Kernel predictions are remembered."""

    def __init__(self, kernels: KernelCost, deployment: Deployment) -> None:
        self.kernels = kernels
        self.deployment = deployment
        self._memo: dict[tuple[Op, bool, Phase, At], OneCall] = {}

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
            kv_elem_bytes=dtype_bytes(self.deployment.kv_dtype),
            state_elem_bytes=dtype_bytes(self.deployment.state_dtype),
        )

    def phase(self, arch: Architecture, batch: int, new: int, cached: int) -> PhaseCost:
        """One pass of `new` tokens after `cached` ones for `batch` sequences."""
        phase: Phase = "decode" if new == 1 and cached > 0 else "prefill"
        found = [
            (call, self._one(call, phase, call.at(batch, new, cached, arch.hidden_size)))
            for call in calls(arch, self.deployment.tensor_parallel)
        ]
        return self._summed(found, self._streams(arch, batch, batch * new))

    def training_step(self, arch: Architecture, batch: int, tokens: int) -> PhaseCost:
        """Forward and backward of `batch` sequences of `tokens`: no optimiser, no exchange of
        gradients, no recomputation.

        Mixers need training times of their own. A layer of weights without one takes its forward
        time for each of its three products: the output's, the input's gradient, the weights'.

        Raises: UsageError with what to profile, for a mixer that was not measured in training.
        """
        every = calls(arch, self.deployment.tensor_parallel)
        self._check_training(every)
        found = [
            (call, self._trained(call, call.at_training(batch, tokens, arch.hidden_size)))
            for call in every
        ]
        tokens = batch * tokens
        return self._summed(found, self._streams(arch, tokens, tokens, PRODUCTS_OF_TRAINING))

    def _summed(self, found: Sequence[tuple[Call, OneCall]], between: Part) -> PhaseCost:
        parts = [*(part_of(call, one) for call, one in found), between]
        if self.deployment.mode == "eager":
            parts += launches(found, between)
        blocked = next((one.blocked for _, one in found if one.blocked), "")
        return PhaseCost(parts=tuple(parts), blocked=blocked)

    def _streams(self, arch: Architecture, batch: int, tokens: int, passes: float = 1.0) -> Part:
        """What runs between the large kernels."""
        d = self.deployment
        known = self.kernels.shortest_call_s
        every = streams(arch, d.tensor_parallel)
        seconds = passes * seconds_of(
            every,
            tokens,
            batch,
            launch_s=known,
            bandwidth=d.hardware.bandwidth,
            elem_bytes=dtype_bytes(d.compute_dtype),
        )
        return Part(
            role="elementwise",
            name="norms, gates, activations",
            count=sum(stream.count for stream in every),
            seconds=seconds,
            low=seconds * math.exp(-LOG_HALF_WIDTH),
            high=seconds * math.exp(LOG_HALF_WIDTH),
            basis=Basis.ANALYTIC if known is None else Basis.SCALED,
            provider="analytic" if known is None else "shortest call",
            error_group="elementwise",
        )

    def _one(self, call: Call, phase: Phase, at: At) -> OneCall:
        op = self._unwindowed(call.op, phase, at)
        key = (op, call.quantised, phase, at)
        if key not in self._memo:
            self._memo[key] = self._predict(op, phase, at, call.quantised)
        return self._memo[key]

    def _unwindowed(self, op: Op, phase: Phase, at: At) -> Op:
        """Full attention where a window holds every key: they are the same computation, and two
        curves of it would make one of them the cheaper. A provider asked for stays."""
        if not isinstance(op, MixerOp) or op.spec.window is None:
            return op
        _, new, cached = at
        full = MixerOp(replace(op.spec, mixer="full_attention", window=None))
        asked = self.deployment.provider_of(op.family, phase) is not None
        same = new + cached <= op.spec.window and not asked and self._has_times(full, phase)
        return full if same else op

    def _predict(self, op: Op, phase: Phase, at: At, quantised: bool) -> OneCall:
        if isinstance(op, ExpertsOp) and self._only_dense_is_known(op):
            return self._as_one_matrix(op, at)
        single = self._kernel(op, phase, at)
        change = stored_dtype_change(op, at, self.deployment) if quantised else None
        return OneCall(
            single=single if change is None else single.scaled(*change),
            host=self._host(op, phase, single),
            blocked=_blocked(op, at, single.outcome),
        )

    def _kernel(self, op: Op, phase: Phase, at: At) -> Single:
        """The call in the compute dtype, of the provider asked for, in a graph if there is one."""
        d = self.deployment
        dtype, provider = d.compute_dtype, d.provider_of(op.family, phase)
        mode = None
        if d.mode is not None:
            mode = self.kernels.mode_for(op, "graph", phase=phase, dtype=dtype, provider=provider)
        return self.kernels.predict_one(
            op, *at, dtype=dtype, provider=provider, mode=mode, training=phase == "training"
        )

    def _host(self, op: Op, phase: Phase, single: Single) -> HostTime:
        """What issuing the call takes; nothing where its own time is an eager one."""
        if single.mode == "eager":
            return HostTime(0.0, True)
        return self.kernels.host_times.of_call(op.family, single.provider, phase)

    def _has_times(self, op: Op, phase: Phase) -> bool:
        dtype = self.deployment.compute_dtype
        return bool(self.kernels.providers(op, phase=phase, dtype=dtype))

    def _only_dense_is_known(self, op: ExpertsOp) -> bool:
        return not self._has_times(op, "prefill") and self._has_times(DenseOp(1, 1), "prefill")

    def _as_one_matrix(self, op: ExpertsOp, at: At) -> OneCall:
        """The experts as two dense layers, as wide as all experts that a token chose together:
        the same FLOPs and bytes."""
        up, down = (
            self._predict(dense, "prefill", rows, True) for dense, rows in as_dense(op, at)
        )
        singles = up.single, down.single
        seconds = sum(s.latency_s for s in singles)
        together = up.single._replace(
            latency_s=seconds,
            low_s=sum(s.low_s for s in singles),
            high_s=sum(s.high_s for s in singles),
            basis=worst(s.basis for s in singles),
            provider=f"{up.single.provider} as one matrix",
        )
        host = HostTime(up.host.seconds + down.host.seconds, up.host.measured)
        single = together.scaled(1.0, ONE_MATRIX_HALF_WIDTH, ONE_MATRIX_HALF_WIDTH)
        return OneCall(single=single, host=host, blocked=up.blocked or down.blocked)

    def _trained(self, call: Call, at: At) -> OneCall:
        if self._has_times(call.op, "training"):
            return self._one(call, "training", at)
        forward = self._one(call, "prefill", at)
        passes = 2.0 if isinstance(call.op, AllReduceOp) else PRODUCTS_OF_TRAINING
        single = forward.single.scaled(passes, TRAINING_HALF_WIDTH, TRAINING_HALF_WIDTH)
        host = HostTime(passes * forward.host.seconds, forward.host.measured)
        return replace(forward, single=single, host=host)

    def _check_training(self, every: Sequence[Call]) -> None:
        missing = [
            c.op for c in every if c.role == "mixer" and not self._has_times(c.op, "training")
        ]
        if missing:
            names = ",".join(dict.fromkeys(op.family for op in missing))
            raise UsageError(
                f"no training times of {names} in {self.deployment.compute_dtype} on "
                f"{self.deployment.hardware.name}; to measure them: attn-profile run --mixers "
                f"{names} --phases training --dtype {self.deployment.compute_dtype}"
            )


def as_dense(op: ExpertsOp, at: At) -> tuple[tuple[DenseOp, At], tuple[DenseOp, At]]:
    """The two matrices of all touched experts side by side, and the rows that each one sees."""
    tokens = at[0] * at[1]
    touched = float(op.touched(tokens))
    rows = (1, max(1, round(tokens * op.top_k / touched)), 0)
    inner = op.expert_intermediate_size
    up = DenseOp(op.hidden_size, math.ceil(inner * (2 if op.gated else 1) * touched))
    return (up, rows), (DenseOp(inner, math.ceil(op.hidden_size * touched)), rows)


def part_of(call: Call, one: OneCall) -> Part:
    """All calls of a kind together: their errors are one error."""
    s, count = one.single, call.count
    return Part(
        role=call.role,
        name=call.name,
        count=count,
        seconds=count * s.latency_s,
        low=count * s.low_s,
        high=count * s.high_s,
        basis=s.basis,
        provider=s.provider,
        error_group=s.error_group,
    )


def launches(found: Sequence[tuple[Call, OneCall]], between: Part) -> list[Part]:
    """What the host keeps the device waiting in eager mode (`launch`); no part if surely never."""
    busy = between.seconds + sum(call.count * one.single.latency_s for call, one in found)
    host = sum(call.count * one.host.seconds for call, one in found)
    low, seconds, high = (
        max(0.0, glue * host - busy) for glue in (GLUE.low, GLUE.typical, GLUE.high)
    )
    if not high > 0:
        return []
    measured = all(one.host.measured for _, one in found)
    return [
        Part(
            role="launch",
            name="launch",
            count=sum(call.count for call, _ in found),
            seconds=seconds,
            low=low,
            high=high,
            basis=Basis.SCALED if measured else Basis.ANALYTIC,
            provider="host",
            error_group="launch",
        )
    ]


def _blocked(op: Op, at: At, outcome: str) -> str:
    if outcome == "ok":
        return ""
    batch, new, cached = at
    return f"{op.short()} at batch {batch}, {new} new after {cached} cached tokens: {outcome}"


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
