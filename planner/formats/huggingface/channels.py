"""The channel mixers of a model: an MLP, experts, or both, in each family's spelling."""

from __future__ import annotations

from dataclasses import dataclass, replace

from planner.architecture import Mlp, Moe
from planner.errors import UsageError
from planner.formats.huggingface import layers
from planner.formats.huggingface.fields import ConfigFields


@dataclass(frozen=True, kw_only=True)
class Channel:
    """The channel mixers: an MLP, experts, or the MLP in the first layers and experts after."""

    mlp: Mlp | None = None
    moe: Moe | None = None
    num_dense_layers: int = 0


def dense(f: ConfigFields) -> Channel:
    return Channel(mlp=Mlp(intermediate_size=f.count("intermediate_size")))


def bare(f: ConfigFields) -> Channel:
    """Mixers alone; an intermediate_size there is the mixer's own inner width."""
    f.skip("intermediate_size", "hidden_ratio")
    return Channel()


def _moe(f: ConfigFields, width: int, shared: int, num_dense: int = 0, mlp: int = 0) -> Channel:
    try:
        moe = Moe(
            num_experts=f.count("num_experts", "num_local_experts", "n_routed_experts"),
            top_k=f.count("num_experts_per_tok", "num_experts_per_token", "experts_per_token"),
            expert_intermediate_size=width,
            shared_intermediate_size=shared,
        )
    except UsageError as error:
        raise f.fail(str(error)) from None
    f.skip("experts_per_token", "num_local_experts")
    dense = Mlp(intermediate_size=mlp) if num_dense else None
    return Channel(mlp=dense, moe=moe, num_dense_layers=num_dense)


def qwen_moe(f: ConfigFields) -> Channel:
    """Dense layers, where there are some, have to be the first ones."""
    if f.count_or("decoder_sparse_step", 1) != 1:
        raise f.fail("decoder_sparse_step: only 1 (experts in every layer) is understood")
    dense = sorted(f.counts("mlp_only_layers") or ())
    if dense != list(range(len(dense))):
        raise f.fail(f"mlp_only_layers must be the first layers, got {dense!r:.40}")
    f.skip("intermediate_size", "shared_expert_intermediate_size")
    return _moe(
        f,
        f.count("moe_intermediate_size"),
        f.count_or("shared_expert_intermediate_size", 0, low=0),
        len(dense),
        f.count("intermediate_size") if dense else 0,
    )


def mixtral_moe(f: ConfigFields) -> Channel:
    shared = f.count_or("shared_intermediate_size", 0, low=0)
    return _moe(f, f.count("intermediate_size"), shared)


def deepseek_moe(f: ConfigFields) -> Channel:
    if f.count_or("moe_layer_freq", 1) != 1:
        raise f.fail("moe_layer_freq: only 1 (experts in every later layer) is understood")
    f.skip("num_shared_experts", "n_shared_experts", "intermediate_size", "dense_ffn_hidden")
    width = f.count("moe_intermediate_size")
    shared = f.count_or(f.first(("n_shared_experts", "num_shared_experts")), 0, low=0)
    num_dense = _num_dense(f)
    mlp = f.count(f.first(("dense_ffn_hidden", "intermediate_size"))) if num_dense else 0
    return _moe(f, width, shared * width, num_dense, mlp)


def _num_dense(f: ConfigFields) -> int:
    """Layers with the MLP come first: counted, or listed one by one."""
    types = f.words("mlp_layer_types")
    if types is None:
        return f.count_or("first_k_dense_replace", 0, low=0)
    f.skip("first_k_dense_replace")
    if not set(types) <= {"dense", "sparse"} or types != sorted(types):
        raise f.fail(f"mlp_layer_types must be dense, then sparse, got {types!r:.40}")
    return types.count("dense")


def granite(f: ConfigFields) -> Channel:
    """Without experts only the shared MLP is left."""
    shared = f.count("shared_intermediate_size")
    if not f.count_or("num_local_experts", 0, low=0):
        f.skip("intermediate_size", "num_experts_per_tok")
        return Channel(mlp=Mlp(intermediate_size=shared))
    return _moe(f, f.count("intermediate_size"), shared)


def nemotron_h(f: ConfigFields) -> Channel:
    """Plain, not gated (squared ReLU). Layers with an MLP come before those with experts."""
    types = [t for t in layers.nemotron_types(f) if t in ("mlp", "moe")]
    num_dense = types.count("mlp")
    if types != sorted(types):
        raise f.fail("layers with an MLP after layers with experts are not understood")
    f.skip("n_shared_experts", "n_routed_experts", "moe_intermediate_size", "num_experts_per_tok",
           "moe_shared_expert_intermediate_size", "intermediate_size")  # fmt: skip
    mlp = Mlp(intermediate_size=f.count("intermediate_size"), gated=False) if num_dense else None
    if num_dense == len(types):
        return Channel(mlp=mlp)
    shared = f.count_or("n_shared_experts", 1, low=0)
    found = _moe(
        f,
        f.count("moe_intermediate_size"),
        shared * f.count("moe_shared_expert_intermediate_size") if shared else 0,
    )
    assert found.moe is not None
    return Channel(mlp=mlp, moe=replace(found.moe, gated=False), num_dense_layers=num_dense)
