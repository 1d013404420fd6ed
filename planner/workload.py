"""Workload, one kernel call; Traffic, a user's load; and the lengths people write ("128k").

>>> Workload(spec=spec, batch_size=1, new_tokens=4096).phase          # doctest: +SKIP
'prefill'
>>> parse_tokens("128k")
131072
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np

from planner.errors import UsageError
from planner.mixers import Gemm, MixerSpec, get_mixer

Phase = Literal["prefill", "decode", "training"]

DTYPE_BYTES: dict[str, float] = {
    "fp64": 8,
    "fp32": 4,
    "tf32": 4,
    "bf16": 2,
    "fp16": 2,
    "fp8": 1,
    "int8": 1,
    "int4": 0.5,
}

BACKWARD_OVER_FORWARD = 2.5
"""FLOPs of backward over forward: exact for attention (5 matmuls of 2), an estimate for chunked
linear mixers (2 to 2.7 times)."""

_TOKENS = re.compile(r"(\d+)([kKmM]?)")


def parse_tokens(text: str) -> int:
    """Reads "128k" as 131072: k is 1,024 and m is 1,048,576. Raises UsageError."""
    match = _TOKENS.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"length must be a whole number of tokens, such as 4096, 128k or 1m, got {text!r}"
        )
    return int(match[1]) * {"": 1, "k": 1 << 10, "m": 1 << 20}[match[2].lower()]


def format_tokens(tokens: int) -> str:
    """Writes 131072 as "128k"; numbers that are not whole k stay as they are."""
    for unit, size in (("m", 1 << 20), ("k", 1 << 10)):
        if tokens >= size and tokens % size == 0:
            return f"{tokens // size}{unit}"
    return str(tokens)


def parse_lengths(text: str) -> list[int]:
    """Reads "1k:128k" as powers of two, "1k,3000" as a list. Raises UsageError."""
    lengths: list[int] = []
    for part in text.split(","):
        if ":" not in part:
            lengths.append(parse_tokens(part))
            continue
        first, _, last = part.partition(":")
        low, high = parse_tokens(first), parse_tokens(last)
        if not 0 < low <= high:
            raise UsageError(f"length range must rise from at least 1, got {part!r}")
        while low <= high:
            lengths.append(low)
            low *= 2
    if any(n < 1 for n in lengths):
        raise UsageError(f"lengths must be at least 1, got {text!r}")
    return sorted(set(lengths))


def dtype_bytes(dtype: str) -> float:
    try:
        return DTYPE_BYTES[dtype]
    except KeyError:
        raise UsageError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPE_BYTES)}") from None


class Operation(Protocol):
    """What a kernel call computes: a mixer, a dense layer or a whole stack of blocks."""

    @property
    def family(self) -> str: ...
    def to_dict(self) -> dict[str, Any]: ...
    def short(self) -> str: ...
    def model_flops(self, batch: Any, new: Any, cached: Any) -> Any: ...
    def executed_flops(self, batch: Any, new: Any, cached: Any) -> Any: ...
    def min_bytes(self, batch: Any, new: Any, cached: Any, elem_bytes: float) -> Any: ...


@dataclass(frozen=True)
class MixerOp:
    """A mixer's kernel alone: no projections, no convolution. Keeps what the kernel sees."""

    spec: MixerSpec

    def __post_init__(self) -> None:
        object.__setattr__(self, "spec", self.spec.kernel())

    @property
    def family(self) -> str:
        return self.spec.mixer

    def to_dict(self) -> dict[str, Any]:
        return self.spec.to_dict()

    def short(self) -> str:
        return self.spec.short()

    def model_flops(self, batch: Any, new: Any, cached: Any) -> Any:
        return get_mixer(self.spec.mixer).model_flops(self.spec, batch, new, cached)

    def executed_flops(self, batch: Any, new: Any, cached: Any) -> Any:
        return get_mixer(self.spec.mixer).executed_flops(self.spec, batch, new, cached)

    def min_bytes(self, batch: Any, new: Any, cached: Any, elem_bytes: float) -> Any:
        return get_mixer(self.spec.mixer).min_bytes(self.spec, batch, new, cached, elem_bytes)


@dataclass(frozen=True)
class DenseOp:
    """A weight matrix times batch_size x new_tokens rows; cached tokens play no part."""

    in_features: int
    out_features: int

    @property
    def family(self) -> str:
        return "dense"

    @classmethod
    def of(cls, gemm: Gemm) -> DenseOp:
        return cls(gemm.in_features, gemm.out_features)

    def to_dict(self) -> dict[str, Any]:
        return {"in_features": self.in_features, "out_features": self.out_features}

    def short(self) -> str:
        return f"dense {self.in_features}->{self.out_features}"

    def model_flops(self, batch: Any, new: Any, cached: Any) -> Any:
        return 2.0 * batch * new * self.in_features * self.out_features

    executed_flops = model_flops

    def min_bytes(self, batch: Any, new: Any, cached: Any, elem_bytes: float) -> Any:
        rows = batch * new * float(self.in_features + self.out_features)
        return elem_bytes * (rows + self.in_features * self.out_features)


@dataclass(frozen=True)
class ConvOp:
    """A causal short convolution over each channel, as recurrent mixers put before q, k and v."""

    channels: int
    size: int

    @property
    def family(self) -> str:
        return "short_convolution"

    def to_dict(self) -> dict[str, Any]:
        return {"channels": self.channels, "size": self.size}

    def short(self) -> str:
        return f"short_convolution {self.channels}x{self.size}"

    def model_flops(self, batch: Any, new: Any, cached: Any) -> Any:
        return 2.0 * batch * new * self.channels * self.size

    executed_flops = model_flops

    def min_bytes(self, batch: Any, new: Any, cached: Any, elem_bytes: float) -> Any:
        """Reads and writes every token once; reads and writes the tail where one came in."""
        tail = 2 * (self.size - 1) * (np.asarray(cached) > 0)
        return (elem_bytes * batch * self.channels * (2.0 * np.asarray(new) + tail))[()]


@dataclass(frozen=True)
class ExpertsOp:
    """The routed experts of a mixture in one call: `top_k` of `num_experts` MLPs per token.

    Tokens choose independently and evenly, so T of them touch E (1 - (1 - k/E)^T) experts.
    """

    hidden_size: int
    expert_intermediate_size: int
    num_experts: int
    top_k: int
    gated: bool = True

    @property
    def family(self) -> str:
        return "experts"

    @property
    def expert_parameters(self) -> int:
        return (3 if self.gated else 2) * self.hidden_size * self.expert_intermediate_size

    def to_dict(self) -> dict[str, Any]:
        return {
            "hidden_size": self.hidden_size,
            "expert_intermediate_size": self.expert_intermediate_size,
            "num_experts": self.num_experts,
            "top_k": self.top_k,
            "gated": self.gated,
        }

    def short(self) -> str:
        return (
            f"experts {self.top_k} of {self.num_experts} "
            f"{self.hidden_size}->{self.expert_intermediate_size}"
        )

    def touched(self, tokens: Any) -> Any:
        """Expected number of experts that at least one of `tokens` chooses."""
        return self.num_experts * (1 - (1 - self.top_k / self.num_experts) ** tokens)

    def model_flops(self, batch: Any, new: Any, cached: Any) -> Any:
        return 2.0 * batch * new * self.top_k * self.expert_parameters

    executed_flops = model_flops

    def min_bytes(self, batch: Any, new: Any, cached: Any, elem_bytes: float) -> Any:
        """Each touched expert's weights once, each token in and out."""
        tokens = batch * new
        weights = self.touched(tokens) * self.expert_parameters
        return elem_bytes * (weights + 2.0 * tokens * self.hidden_size)


@dataclass(frozen=True)
class AllReduceOp:
    """A sum over devices of batch_size x new_tokens elements (tokens times hidden size)."""

    num_devices: int

    @property
    def family(self) -> str:
        return "all_reduce"

    def to_dict(self) -> dict[str, Any]:
        return {"num_devices": self.num_devices}

    def short(self) -> str:
        return f"all_reduce x{self.num_devices}"

    def model_flops(self, batch: Any, new: Any, cached: Any) -> Any:
        return 1.0 * batch * new * (self.num_devices - 1)

    executed_flops = model_flops

    def min_bytes(self, batch: Any, new: Any, cached: Any, elem_bytes: float) -> Any:
        """Device memory alone: the input read, the sum written. Links are slower than that."""
        return elem_bytes * 2.0 * batch * new


@dataclass(frozen=True)
class StackOp:
    """A stack of blocks, one letter each: norm, projections, mixer, projection, residual.

    With an `mlp_size` a norm, an MLP of that intermediate size and a residual follow each: gated
    (SwiGLU) or, with `mlp_gated` off, up, squared ReLU and down. It is measured as one and
    compared with the sum of its layers measured the same way.
    """

    pattern: str
    kinds: tuple[tuple[str, MixerSpec], ...]
    hidden_size: int
    mlp_size: int = 0
    mlp_gated: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", tuple(sorted(self.kinds, key=lambda kind: kind[0])))
        if not self.mlp_size:  # without an MLP there is no gate to tell two stacks apart
            object.__setattr__(self, "mlp_gated", True)
        missing = sorted(set(self.pattern) - {letter for letter, _ in self.kinds})
        if missing or not self.pattern:
            raise UsageError(
                f"stack {self.pattern!r}: letter {missing[0]!r} has no mixer"
                if missing
                else "a stack needs at least one layer"
            )

    @property
    def family(self) -> str:
        return "stack"

    def to_dict(self) -> dict[str, Any]:
        """Only what differs from the defaults, so that stored stacks keep their keys."""
        found = {
            "pattern": self.pattern,
            "kinds": {letter: spec.to_dict() for letter, spec in self.kinds},
            "hidden_size": self.hidden_size,
        }
        mlp = {"mlp_size": self.mlp_size} if self.mlp_size else {}
        return found | mlp | ({} if self.mlp_gated else {"mlp_gated": False})

    def short(self) -> str:
        mlp = f" mlp{self.mlp_size}" if self.mlp_size else ""
        mlp += "" if self.mlp_gated else " ungated"
        return f"stack {self.pattern} d{self.hidden_size}{mlp}"

    @cached_property
    def layers(self) -> tuple[MixerSpec, ...]:
        kinds = dict(self.kinds)
        return tuple(kinds[letter] for letter in self.pattern)

    def parts(self) -> list[Op]:
        return [op for op, _ in self.calls(1, 0)]

    def calls(self, new: Any, cached: Any) -> list[tuple[Op, Any]]:
        """Each operation with the tokens of a sequence that it is given: the new ones.

        MLA's expansion of its latents is given the cached ones too, save for a single new token:
        a decode step folds it into that token's queries and output.
        """
        d, m = self.hidden_size, self.mlp_size
        mlp: list[Op] = [DenseOp(d, (2 if self.mlp_gated else 1) * m), DenseOp(m, d)] if m else []
        expanded = np.where(np.asarray(new) == 1, new, np.asarray(new) + cached)[()]
        found: list[tuple[Op, Any]] = []
        for spec in self.layers:
            gemms = get_mixer(spec.mixer).projections(spec, d)
            ops = layer_ops(spec, d)
            around = len(ops) - len(gemms)
            found += [(op, new) for op in ops[:around]]
            found += [
                (op, expanded if gemm.of_cached else new)
                for op, gemm in zip(ops[around:], gemms, strict=True)
            ]
            found += [(op, new) for op in mlp]
        return found

    def model_flops(self, batch: Any, new: Any, cached: Any) -> Any:
        return sum(op.model_flops(batch, n, cached) for op, n in self.calls(new, cached))

    def executed_flops(self, batch: Any, new: Any, cached: Any) -> Any:
        return sum(op.executed_flops(batch, n, cached) for op, n in self.calls(new, cached))

    def min_bytes(self, batch: Any, new: Any, cached: Any, elem_bytes: float) -> Any:
        return sum(op.min_bytes(batch, n, cached, elem_bytes) for op, n in self.calls(new, cached))


Op = MixerOp | DenseOp | ConvOp | ExpertsOp | AllReduceOp | StackOp


def layer_ops(spec: MixerSpec, hidden_size: int) -> list[Op]:
    """What one mixer layer runs: the mixer, its convolution if any, its projections."""
    mixer = get_mixer(spec.mixer)
    channels = mixer.conv_channels(spec)
    convolution: list[Op] = [ConvOp(channels, spec.conv_size)] if channels else []
    projections = [DenseOp.of(gemm) for gemm in mixer.projections(spec, hidden_size)]
    return [MixerOp(spec), *convolution, *projections]


def operation_from(family: str, data: dict[str, Any]) -> Op:
    """The operation a stored (family, spec) pair names. Raises UsageError on unknown fields."""
    try:
        return _operation_from(family, data)
    except (TypeError, KeyError) as error:
        raise UsageError(f"not the dimensions of a {family!r} operation: {error}") from None


def _operation_from(family: str, data: dict[str, Any]) -> Op:
    if family == "dense":
        return DenseOp(**data)
    if family == "short_convolution":
        return ConvOp(**data)
    if family == "experts":
        return ExpertsOp(**data)
    if family == "all_reduce":
        return AllReduceOp(**data)
    if family == "stack":
        kinds = tuple((k, MixerSpec.from_dict(v)) for k, v in data["kinds"].items())
        return StackOp(
            data["pattern"],
            kinds,
            data["hidden_size"],
            mlp_size=data.get("mlp_size", 0),
            mlp_gated=data.get("mlp_gated", True),
        )
    spec = MixerSpec.from_dict(data)
    if spec.mixer != family:
        raise UsageError(f"spec of family {family!r} names mixer {spec.mixer!r}")
    get_mixer(family)
    return MixerOp(spec)


def canonical_json(data: Any) -> str:
    """The one spelling of a spec: sorted keys, no spaces. Identity hashes rest on it."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One kernel call: `new_tokens` after `cached_tokens`, for each of `batch_size` sequences.

    (T, 0) is a prefill, (1, S) a decode step, (C, S) a segment of a long prefill or a prefix hit.
    """

    op: Op
    batch_size: int
    new_tokens: int
    cached_tokens: int = 0
    dtype: str = "bf16"
    training: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.new_tokens < 1:
            raise UsageError(f"new_tokens must be at least 1, got {self.new_tokens}")
        if self.cached_tokens < 0:
            raise UsageError(f"cached_tokens must not be negative, got {self.cached_tokens}")
        dtype_bytes(self.dtype)

    @property
    def phase(self) -> Phase:
        if self.training:
            return "training"
        return "decode" if self.new_tokens == 1 and self.cached_tokens > 0 else "prefill"

    @property
    def context(self) -> int:
        return self.new_tokens + self.cached_tokens

    def _sum(self, per_call: float) -> float:
        return per_call * (1 + BACKWARD_OVER_FORWARD) if self.training else per_call

    @property
    def model_flops(self) -> float:
        return self._sum(
            float(self.op.model_flops(self.batch_size, self.new_tokens, self.cached_tokens))
        )

    @property
    def executed_flops(self) -> float:
        return self._sum(
            float(self.op.executed_flops(self.batch_size, self.new_tokens, self.cached_tokens))
        )

    @property
    def min_bytes(self) -> float:
        return self._sum(
            float(
                self.op.min_bytes(
                    self.batch_size, self.new_tokens, self.cached_tokens, dtype_bytes(self.dtype)
                )
            )
        )

    def identity(self) -> dict[str, Any]:
        """What makes two workloads the same: part of a point's key."""
        return {
            "family": self.op.family,
            "spec": self.op.to_dict(),
            "batch_size": self.batch_size,
            "new_tokens": self.new_tokens,
            "cached_tokens": self.cached_tokens,
            "dtype": self.dtype,
            "training": self.training,
        }

    def short(self) -> str:
        where = (
            f"decode @{format_tokens(self.cached_tokens)}"
            if self.phase == "decode"
            else f"{self.phase} {format_tokens(self.new_tokens)}"
            + (f" after {format_tokens(self.cached_tokens)}" if self.cached_tokens else "")
        )
        return f"{self.op.short()} {where} b{self.batch_size} {self.dtype}"


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """A user's load: what one request looks like and how many run at once.

    `prefix_hit_rate` is the share of prompt tokens found in the prefix cache; `utilisation` the
    share of paid GPU time that serves requests.
    """

    prompt_tokens: int
    output_tokens: int
    concurrency: int = 1
    prefix_hit_rate: float = 0.0
    utilisation: float = 1.0

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "output_tokens", "concurrency"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.prefix_hit_rate < 1:
            raise UsageError(f"prefix_hit_rate must be in [0, 1), got {self.prefix_hit_rate}")
        if not 0 < self.utilisation <= 1:
            raise UsageError(f"utilisation must be in (0, 1], got {self.utilisation}")

    @property
    def context(self) -> int:
        """Tokens a request holds when its last token is written."""
        return self.prompt_tokens + self.output_tokens

    @property
    def cached_prompt_tokens(self) -> int:
        return int(np.floor(self.prompt_tokens * self.prefix_hit_rate))

    @property
    def mean_decode_context(self) -> int:
        """Context of the average output token: the cost of decode is affine in it."""
        return self.prompt_tokens + self.output_tokens // 2
