"""Calls: what one pass of a model runs on one device, kernel by kernel.

Tensor parallelism splits each layer over d devices that run alike: heads, the inner width of MLPs
and experts, and the vocabulary are divided, the residual stream is whole on every device, and
what a mixer or a channel mixer adds to it is summed by an all-reduce. KV heads (and key heads of
recurrent mixers) are replicated once there are fewer of them than devices; MLA's latent and a
router are whole everywhere.

What runs between these kernels is in `streams`. Not counted: gathering the logits of a split head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from planner.architecture import Architecture, Mlp, Moe
from planner.errors import UsageError
from planner.mixers import Gemm, MixerSpec, get_mixer
from planner.workload import AllReduceOp, ConvOp, DenseOp, ExpertsOp, MixerOp, Op

Role = Literal[
    "mixer", "convolution", "projection", "channel", "lm_head", "all_reduce", "elementwise",
    "launch",
]  # fmt: skip
Sees = Literal["context", "tokens", "expanded", "last", "elements"]

MOST_DEVICES = 8
"""Devices that one host joins by NVLink or PCIe; the imported all-reduce tables end there too."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """A kernel that `count` layers run alike.

    `sees` is what its size hangs on: batch and context, the pass's tokens, those and in prefill
    the cached ones (MLA's latents, which decode does not expand), the last token of each sequence,
    or the elements of the residual stream. `quantised` is whether its weights are kept in the
    deployment's dtype; engines leave the LM head and routers in the compute dtype.
    """

    role: Role
    name: str
    count: int
    op: Op
    sees: Sees
    quantised: bool = True

    def at_training(self, batch: int, tokens: int, hidden_size: int) -> tuple[int, int, int]:
        """As `at`, where every token is asked for its successor."""
        whole = replace(self, sees="tokens") if self.sees == "last" else self
        return whole.at(batch, tokens, 0, hidden_size)

    def at(self, batch: int, new: int, cached: int, hidden_size: int) -> tuple[int, int, int]:
        """(batch, new, cached) of the workload in a pass of `new` tokens after `cached` ones."""
        if self.sees == "context":
            return batch, new, cached
        if self.sees == "last":
            return 1, batch, 0
        if self.sees == "expanded" and new > 1:
            return 1, batch * (new + cached), 0
        return 1, batch * new * (hidden_size if self.sees == "elements" else 1), 0


def shard(spec: MixerSpec, degree: int) -> MixerSpec:
    """One device's share of a mixer's heads.

    Raises: UsageError where the heads cannot be divided, as engines do.
    """
    if degree == 1:
        return spec
    most = max(spec.num_q_heads, spec.num_v_heads)
    if most % degree:
        raise UsageError(
            f"tensor_parallel must divide the {most} heads of {spec.short()}, got {degree}"
        )
    return replace(
        spec,
        num_q_heads=_share(spec.num_q_heads, degree, spec),
        num_k_heads=_share(spec.num_k_heads, degree, spec),
        num_v_heads=_share(spec.num_v_heads, degree, spec),
    )


def _share(heads: int, degree: int, spec: MixerSpec) -> int:
    """Heads of one device: a part of them, or one that several devices hold."""
    if heads % degree == 0:
        return heads // degree
    if degree % heads == 0:
        return 1
    raise UsageError(
        f"tensor_parallel must divide the {heads} key heads of {spec.short()} or be a multiple of "
        f"them, got {degree}"
    )


@lru_cache(maxsize=256)
def calls(arch: Architecture, degree: int) -> tuple[Call, ...]:
    """Every kernel of a pass through `arch` on one of `degree` devices.

    Raises: UsageError where the model cannot be split over so many.
    """
    if not 1 <= degree <= MOST_DEVICES:
        raise UsageError(
            f"tensor_parallel must be between 1 and {MOST_DEVICES}, the devices of one host, "
            f"got {degree}"
        )
    return (
        *_mixers(arch, degree),
        *_channels(arch, degree),
        *_head(arch, degree),
        *_all_reduces(arch, degree),
    )


def _mixers(arch: Architecture, degree: int) -> Iterator[Call]:
    for spec, layers in arch.counts().items():
        mixer, mine = get_mixer(spec.mixer), shard(spec, degree)
        yield Call(role="mixer", name=spec.mixer, count=layers, op=MixerOp(mine), sees="context")
        channels = mixer.conv_channels(mine)
        if channels:
            convolution = ConvOp(channels, spec.conv_size)
            yield Call(
                role="convolution", name=spec.mixer, count=layers, op=convolution, sees="context"
            )
        for gemm in mixer.projections(mine, arch.hidden_size):
            call = _dense("projection", f"{spec.mixer} {gemm.role}", layers, gemm)
            yield replace(call, sees="expanded") if gemm.of_cached else call


def _channels(arch: Architecture, degree: int) -> Iterator[Call]:
    dense, sparse = arch.channel_layers()
    hidden = arch.hidden_size
    if arch.mlp is not None and dense:
        for gemm in split_mlp(arch.mlp, degree).projections(hidden):
            yield _dense("channel", gemm.role, dense, gemm)
    if arch.moe is not None and sparse:
        moe = split_moe(arch.moe, degree)
        yield Call(
            role="channel", name="experts", count=sparse, op=experts(moe, hidden), sees="tokens"
        )
        for gemm in moe.shared(hidden):
            yield _dense("channel", f"shared {gemm.role}", sparse, gemm)
        yield replace(_dense("channel", "router", sparse, moe.router(hidden)), quantised=False)


def experts(moe: Moe, hidden_size: int) -> ExpertsOp:
    return ExpertsOp(
        hidden_size, moe.expert_intermediate_size, moe.num_experts, moe.top_k, moe.gated
    )


def _head(arch: Architecture, degree: int) -> Iterator[Call]:
    columns = -(-arch.vocab_size // degree)
    head = Gemm(role="lm_head", in_features=arch.hidden_size, out_features=columns)
    yield replace(_dense("lm_head", "lm_head", 1, head), sees="last", quantised=False)


def _all_reduces(arch: Architecture, degree: int) -> Iterator[Call]:
    """After each mixer, each channel mixer, and the embedding of a split vocabulary."""
    if degree > 1:
        count = sum(arch.counts().values()) + sum(arch.channel_layers()) + 1
        op = AllReduceOp(degree)
        yield Call(role="all_reduce", name="all_reduce", count=count, op=op, sees="elements")


def _dense(role: Role, name: str, count: int, gemm: Gemm) -> Call:
    return Call(role=role, name=name, count=count, op=DenseOp.of(gemm), sees="tokens")


def split_mlp(mlp: Mlp, degree: int) -> Mlp:
    return replace(mlp, intermediate_size=_part(mlp.intermediate_size, degree, "the MLP's width"))


def split_moe(moe: Moe, degree: int) -> Moe:
    """Each expert is divided; experts spread whole over devices are not modelled."""
    return replace(
        moe,
        expert_intermediate_size=_part(moe.expert_intermediate_size, degree, "the experts' width"),
        shared_intermediate_size=_part(
            moe.shared_intermediate_size, degree, "the shared expert's width"
        ),
    )


def _part(size: int, degree: int, what: str) -> int:
    if size % degree:
        raise UsageError(f"tensor_parallel must divide {what} of {size}, got {degree}")
    return size // degree
