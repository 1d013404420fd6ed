"""One layer's mixer from the fields of a config.json, in each family's spelling."""

from __future__ import annotations

from planner.errors import UsageError
from planner.formats.huggingface.fields import ConfigFields
from planner.mixers import MixerSpec


def attention(f: ConfigFields, window: int | None = None, *, gate: bool = False) -> MixerSpec:
    """Heads share a width: `head_dim`, or hidden_size over the heads. A window that no context
    outgrows is full attention."""
    longest = f.optional("max_position_embeddings")
    if window is not None and longest is not None and window >= longest:
        window = None
    heads = f.count("num_attention_heads")
    kv_heads = f.count_or("num_key_value_heads", heads)
    dim = f.optional(f.first(("head_dim", "attention_head_dim")))
    if dim is None:
        hidden = f.count("hidden_size")
        if hidden % heads:
            raise f.fail(f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
        dim = hidden // heads
    return spec(
        f,
        mixer="full_attention" if window is None else "sliding_window",
        num_q_heads=heads,
        num_k_heads=kv_heads,
        num_v_heads=kv_heads,
        k_head_dim=dim,
        v_head_dim=dim,
        window=window,
        output_gate=gate,
    )


def spec(f: ConfigFields, **dims: object) -> MixerSpec:
    try:
        return MixerSpec(**dims)  # type: ignore[arg-type]
    except UsageError as error:
        raise f.fail(str(error)) from None


def mla(f: ConfigFields) -> MixerSpec:
    if f.flag("mla_use_output_gate", False):
        raise f.fail("mla_use_output_gate: an output gate on MLA is not on paper here")
    f.skip("num_key_value_heads", "head_dim", "qk_head_dim", "mla_use_nope")
    heads = f.count("num_attention_heads")
    return spec(
        f,
        mixer="mla",
        num_q_heads=heads,
        num_k_heads=heads,
        num_v_heads=heads,
        k_head_dim=f.count("qk_nope_head_dim"),
        v_head_dim=f.count("v_head_dim"),
        kv_lora_rank=f.count("kv_lora_rank"),
        q_lora_rank=f.count_or("q_lora_rank", 0),
        rope_head_dim=f.count("qk_rope_head_dim"),
    )


def gated_deltanet(f: ConfigFields) -> MixerSpec:
    key_heads = f.count("linear_num_key_heads")
    f.skip("linear_use_gate")
    return spec(
        f,
        mixer="gated_deltanet",
        num_q_heads=key_heads,
        num_k_heads=key_heads,
        num_v_heads=f.count("linear_num_value_heads"),
        k_head_dim=f.count("linear_key_head_dim"),
        v_head_dim=f.count("linear_value_head_dim"),
        conv_size=f.count("linear_conv_kernel_dim"),
    )


def kda(f: ConfigFields) -> MixerSpec:
    """Its numbers stand in `linear_attn_config`, or flat as transformers saves them."""
    nested = f.inside("linear_attn_config")
    heads, dim, conv = (
        (
            nested.count("num_heads"),
            nested.count("head_dim"),
            nested.count("short_conv_kernel_size"),
        )
        if nested
        else (
            f.count("linear_num_heads"),
            f.count("linear_head_dim"),
            f.count("linear_conv_kernel_dim"),
        )
    )
    return spec(
        f,
        mixer="kda",
        num_q_heads=heads,
        num_k_heads=heads,
        num_v_heads=heads,
        k_head_dim=dim,
        v_head_dim=dim,
        conv_size=conv,
    )


def mamba2(f: ConfigFields) -> MixerSpec:
    """Each family spells its numbers its own way; a head dim of "auto" divides the inner width."""
    heads = f.count("mamba_n_heads", "mamba_num_heads", "num_heads")
    groups = f.count("mamba_n_groups", "n_groups")
    dim = f.first(("mamba_d_head", "mamba_head_dim", "head_dim"))
    expand = f.first(("mamba_expand", "expand"))
    if f.get(dim) == "auto":
        inner = int(f.number_or(expand, 2.0) * f.count("hidden_size"))
        if inner % heads:
            raise f.fail(f"{dim}: {heads} heads do not divide the inner width {inner}")
        head_dim = inner // heads
    else:
        head_dim = f.count(dim)
    return spec(
        f,
        mixer="mamba2",
        num_q_heads=groups,
        num_k_heads=groups,
        num_v_heads=heads,
        k_head_dim=f.count("mamba_d_state", "ssm_state_size", "state_size"),
        v_head_dim=head_dim,
        conv_size=f.count("mamba_d_conv", "conv_kernel"),
    )


def lightning(f: ConfigFields) -> MixerSpec:
    """As many heads, and as wide, as the model's attention has."""
    full = attention(f)
    heads, dim = full.num_q_heads, full.k_head_dim
    return spec(
        f,
        mixer="lightning",
        num_q_heads=heads,
        num_k_heads=heads,
        num_v_heads=heads,
        k_head_dim=dim,
        v_head_dim=dim,
        output_gate=True,
    )
