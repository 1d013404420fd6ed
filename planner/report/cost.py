"""Cost report: what models cost side by side, computed once for the terminal, JSON and the page.

>>> CostReport.of(advisor, [full, hybrid], traffic, price=price).models[1].price   # doctest: +SKIP
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from planner.architecture import Architecture
from planner.catalog import DEFAULT_ENGINE, Price
from planner.cost.break_even import BreakEven, KernelCrossing, break_even
from planner.cost.calls import shard
from planner.cost.energy import Powers, TokenEnergy, measured_powers, token_energy
from planner.cost.memory import IDEAL, UNBOUNDED, MemoryModel
from planner.cost.model import CostModel, Deployment, ModelCost, Part, PhaseCost, Throughput
from planner.cost.price import (
    AtContext,
    Crossing,
    Estimate,
    Side,
    TokenPrice,
    crossing,
    over_context,
    token_price,
)
from planner.decision.advisor import SERVING_MODE, Advisor
from planner.mixers import get_mixer
from planner.workload import Traffic

SIDES: tuple[Side, Side] = ("input", "output")


@dataclass(frozen=True)
class TrainingStep:
    """Sequences and tokens of each in one forward and backward pass on one device."""

    batch_size: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class ModelReport:
    """One model. `ideal` and `reserved` are its bytes by formula and by the engine's rules.

    `price` is None without an hourly price, `break_even` where there is no recurrent layer beside
    an attention layer. `crossings` says from which prompt length on its tokens are cheaper than
    the first model's; empty for the first and without lengths. `training` is None where it was
    not asked for.
    """

    arch: Architecture
    cost: ModelCost
    ideal: MemoryModel
    reserved: MemoryModel
    price: TokenPrice | None
    energy: TokenEnergy
    break_even: BreakEven | None
    over: tuple[AtContext, ...]
    crossings: Mapping[Side, Crossing]
    training: PhaseCost | None = None

    @property
    def name(self) -> str:
        return self.arch.name

    @property
    def context(self) -> int:
        return self.cost.traffic.context

    @property
    def max_context(self) -> float:
        """Of one sequence, in tokens; infinite where nothing grows."""
        longest = self.reserved.max_context(1)
        return math.inf if longest >= UNBOUNDED else longest


@dataclass(frozen=True, kw_only=True)
class CostReport:
    """Models under one traffic on one deployment."""

    deployment: Deployment
    traffic: Traffic
    price: Price | None
    models: tuple[ModelReport, ...]
    training: TrainingStep | None = None

    @classmethod
    def of(
        cls,
        advisor: Advisor,
        models: Sequence[Architecture],
        traffic: Traffic,
        *,
        device_id: str | None = None,
        weights_dtype: str | None = None,
        kv_dtype: str | None = None,
        tensor_parallel: int = 1,
        engine: str = DEFAULT_ENGINE,
        mode: str = SERVING_MODE,
        providers: Mapping[str, str] | None = None,
        price: Price | None = None,
        contexts: Sequence[int] = (),
        training: TrainingStep | None = None,
    ) -> CostReport:
        """Raises: UsageError for a name, dtype, degree or provider that cannot be, and for a
        training step of a mixer that was not measured in training."""
        model = advisor.cost_model(
            device_id,
            weights_dtype=weights_dtype,
            kv_dtype=kv_dtype,
            tensor_parallel=tensor_parallel,
            engine=engine,
            providers=providers,
            mode=mode,
        )
        points = advisor.points
        powers = measured_powers(points[points["device_id"] == advisor.device(device_id).id])
        curves = [over_context(model, arch, traffic, contexts) for arch in models]
        return cls(
            deployment=model.deployment,
            traffic=traffic,
            price=price,
            models=tuple(
                replace(
                    _model_report(model, arch, traffic, price, powers, curves[0], curve),
                    training=model.training_step(arch, training.batch_size, training.tokens)
                    if training
                    else None,
                )
                for arch, curve in zip(models, curves, strict=True)
            ),
            training=training,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: seconds, bytes, tokens, dollars and joules; null where unknown."""
        d = self.deployment
        return {
            "hardware": {"id": d.hardware.id, "name": d.hardware.name},
            "traffic": asdict(self.traffic),
            "training": asdict(self.training) if self.training else None,
            "deployment": {
                "compute_dtype": d.compute_dtype,
                "weights_dtype": d.weights_dtype,
                "kv_dtype": d.kv_dtype,
                "state_dtype": d.state_dtype,
                "tensor_parallel": d.tensor_parallel,
                "mode": d.mode,
                "providers": dict(d.providers),
                "engine": asdict(d.rules),
            },
            "price": asdict(self.price) if self.price else None,
            "models": [_model_dict(m, self.price) for m in self.models],
        }


def _model_report(
    model: CostModel,
    arch: Architecture,
    traffic: Traffic,
    price: Price | None,
    powers: Powers,
    first: tuple[AtContext, ...],
    curve: tuple[AtContext, ...],
) -> ModelReport:
    cost = model.estimate(arch, traffic)
    memory = model.deployment.memory_model(arch)
    compared = bool(curve) and curve is not first
    return ModelReport(
        arch=arch,
        cost=cost,
        ideal=replace(memory, rules=IDEAL),
        reserved=memory,
        price=token_price(cost, price.usd_per_hour) if price else None,
        energy=token_energy(cost, powers),
        break_even=_break_even(model, arch, max(cost.batch_size, 1)),
        over=curve,
        crossings={side: crossing(first, curve, side) for side in SIDES} if compared else {},
    )


def _break_even(model: CostModel, arch: Architecture, batch: int) -> BreakEven | None:
    """Of the model's recurrent layers against its full-attention ones, one device's share."""
    d = model.deployment
    kinds = {get_mixer(spec.mixer).kind: shard(spec, d.tensor_parallel) for spec in arch.counts()}
    full, state = kinds.get("full"), kinds.get("recurrent")
    if full is None or state is None:
        return None
    return break_even(
        model.kernels,
        full,
        state,
        batch,
        dtype=d.compute_dtype,
        kv_dtype=d.kv_dtype,
        state_dtype=d.state_dtype,
        full_provider=d.provider_of(full.mixer, "decode"),
        state_provider=d.provider_of(state.mixer, "decode"),
        mode=d.mode,
    )


def tpot(cost: ModelCost) -> Estimate:
    """At the batch that fits; NaN where not even one sequence does."""
    found = _phase(cost.decode)
    return found if cost.batch_size else found.scaled(math.nan)


# JSON


def _model_dict(m: ModelReport, price: Price | None) -> dict[str, Any]:
    return {
        "model": m.name,
        "mixers": m.arch.describe(),
        "layers": m.arch.pattern.run_length(),
        "blocked": m.cost.blocked,
        "ttft_s": _estimate(_phase(m.cost.prefill)),
        "tpot_s": _estimate(tpot(m.cost)),
        "training_step_s": _estimate(_phase(m.training)) if m.training else None,
        "prefill_tokens_per_s": _throughput(m.cost.prefill_throughput),
        "decode_tokens_per_s": _throughput(m.cost.decode_throughput),
        "batch_size": m.cost.batch_size,
        "amdahl_ceiling": {
            "prefill": known(m.cost.prefill.ceiling()),
            "decode": known(m.cost.decode.ceiling()),
        },
        "breakdown": {
            "prefill": [_with_basis(p) for p in m.cost.prefill.parts],
            "decode": [_with_basis(p) for p in m.cost.decode.parts],
            "training": [_with_basis(p) for p in m.training.parts] if m.training else [],
        },
        "memory": _memory(m),
        "usd": _price_dict(m.price),
        "energy_j_per_token": {
            "input": _estimate(m.energy.input),
            "output": _estimate(m.energy.output),
            "not_measured": list(m.energy.missing),
        },
        "break_even": _break_even_dict(m.break_even),
        "cheaper_than_first_from": {
            side: {k: known(v) for k, v in asdict(found).items()}
            for side, found in m.crossings.items()
        },
        "over_context": [_at_context(point, price) for point in m.over],
    }


def _at_context(point: AtContext, price: Price | None) -> dict[str, Any]:
    cost = point.cost
    return {
        "prompt_tokens": point.context,
        "batch_size": cost.batch_size,
        "ttft_s": _estimate(_phase(cost.prefill)),
        "tpot_s": _estimate(tpot(cost)),
        "usd": _price_dict(token_price(cost, price.usd_per_hour) if price else None),
    }


def _memory(m: ModelReport) -> dict[str, Any]:
    fixed, slope = m.reserved.kv_line(m.context)
    batch = max(m.cost.batch_size, 1)
    found: dict[str, Any] = {
        "context_tokens": m.context,
        "max_concurrency": m.cost.max_concurrency,
        "limited_by": m.reserved.limited_by(m.context),
        "max_context_tokens": known(m.max_context),
        "kv_fixed_bytes": fixed,
        "kv_bytes_per_token": slope,
    }
    for name, model in (("ideal", m.ideal), ("reserved", m.reserved)):
        at = model.at(m.context, batch)
        found[name] = {
            "weights_bytes": at.weights,
            "kv_cache_bytes": at.kv_cache,
            "state_bytes": at.state,
            "workspace_bytes": at.workspace,
            "total_bytes": at.total,
            "capacity_bytes": at.capacity,
            "max_concurrency": model.max_concurrency(m.context),
        }
    return found


def _price_dict(price: TokenPrice | None) -> dict[str, Any] | None:
    if price is None:
        return None
    return {
        "per_million_input_tokens": _estimate(price.input),
        "per_million_output_tokens": _estimate(price.output),
        "per_request": _estimate(price.request),
    }


def _break_even_dict(found: BreakEven | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "batch_size": found.batch_size,
        "by_formula": found.by_formula,
        "measured": _with_basis(found.measured) if found.measured else None,
    }


def _with_basis(record: Part | KernelCrossing) -> dict[str, Any]:
    numbers = {k: known(v) if isinstance(v, float) else v for k, v in asdict(record).items()}
    return {**numbers, "basis": record.basis.label}


def _phase(phase: PhaseCost) -> Estimate:
    return Estimate(value=phase.seconds, low=phase.low, high=phase.high, basis=phase.basis)


def _throughput(found: Throughput) -> dict[str, float | None]:
    return {k: known(v) for k, v in found._asdict().items()}


def _estimate(found: Estimate | None) -> dict[str, Any] | None:
    if found is None:
        return None
    numbers = {k: known(getattr(found, k)) for k in ("value", "low", "high")}
    return {**numbers, "basis": found.basis.label}


def known(value: float) -> float | None:
    """JSON has no NaN and no infinity: what is not a number is null."""
    return value if math.isfinite(value) else None
