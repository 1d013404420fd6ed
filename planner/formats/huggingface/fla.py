"""Models of flash-linear-attention: one mixer throughout, and attention where `attn` says so."""

from __future__ import annotations

from collections.abc import Callable

from planner.architecture import Mlp
from planner.formats.huggingface import channels, layers, mixers
from planner.formats.huggingface.fields import ConfigFields
from planner.mixers import MixerSpec


def mixed(own: Callable[[ConfigFields], MixerSpec]) -> Callable[[ConfigFields], layers.Layers]:
    def read(f: ConfigFields) -> layers.Layers:
        n = layers.num_layers(f)
        found: dict[int, MixerSpec] = {}
        given = f.get("attn")
        listed = given if isinstance(given, list) else [] if given is None else [given]
        for item in listed:
            if not isinstance(item, dict):
                raise f.fail(f"attn must be an object or a list of them, got {given!r:.40}")
            attn = ConfigFields(item, f"{f.where} attn")
            spec = _attention(attn, f.count("hidden_size"))
            for i in attn.counts("layers", high=n - 1) or ():
                if i in found:
                    raise attn.fail(f"layer {i} is listed twice")
                found[i] = spec
            attn.refuse_unread()
        rest = own(f) if len(found) < n else None
        return [found.get(i, rest) for i in range(n)]

    return read


def _attention(f: ConfigFields, hidden: int) -> MixerSpec:
    heads = f.count("num_heads")
    kv_heads = f.count_or("num_kv_heads", heads)
    window = f.optional("window_size")
    if hidden % heads:
        raise f.fail(f"hidden_size {hidden} is not a multiple of num_heads {heads}")
    return mixers.spec(
        f,
        mixer="full_attention" if window is None else "sliding_window",
        num_q_heads=heads,
        num_k_heads=kv_heads,
        num_v_heads=kv_heads,
        k_head_dim=hidden // heads,
        v_head_dim=hidden // heads,
        window=window,
    )


def delta(mixer: str) -> Callable[[ConfigFields], MixerSpec]:
    """Gated DeltaNet and KDA: keys as wide as `head_dim`, values `expand_v` times that."""

    def spec(f: ConfigFields) -> MixerSpec:
        if not f.flag("use_gate", True):
            raise f.fail("use_gate: false is not on paper here; the mixer has its output gate")
        heads, dim = f.count("num_heads"), f.count("head_dim")
        value = f.number_or("expand_v", 1.0) * dim
        if value != int(value):
            raise f.fail(f"expand_v times head_dim must be whole, got {value:g}")
        conv = f.count_or("conv_size", 4) if f.flag("use_short_conv", True) else 0
        f.skip("conv_size")
        return mixers.spec(
            f,
            mixer=mixer,
            num_q_heads=heads,
            num_k_heads=heads,
            num_v_heads=f.count_or("num_v_heads", heads),
            k_head_dim=dim,
            v_head_dim=int(value),
            conv_size=conv,
        )

    return spec


def linear(f: ConfigFields) -> MixerSpec:
    """Widths are shares of hidden_size: `expand_k` and `expand_v` over the heads."""
    heads, hidden = f.count("num_heads"), f.count("hidden_size")
    kv_heads = f.count_or("num_kv_heads", heads)
    widths = [f.number_or(name, 1.0) * hidden / heads for name in ("expand_k", "expand_v")]
    if kv_heads != heads or any(w != int(w) for w in widths):
        raise f.fail(
            f"num_kv_heads must equal num_heads and the widths be whole, got {kv_heads}, {heads}, "
            f"{widths[0]:g} and {widths[1]:g}"
        )
    f.skip("tie_feature_map_qk", "norm_feature_map")
    return mixers.spec(
        f,
        mixer="linear_attention",
        num_q_heads=heads,
        num_k_heads=heads,
        num_v_heads=heads,
        k_head_dim=int(widths[0]),
        v_head_dim=int(widths[1]),
    )


def transformer(f: ConfigFields) -> layers.Layers:
    return [_attention(f, f.count("hidden_size"))] * layers.num_layers(f)


def mlp(f: ConfigFields) -> channels.Channel:
    """Without `intermediate_size`: two thirds of `hidden_ratio` times hidden, in steps of 256."""
    width = f.optional("intermediate_size")
    if width is None:
        wanted = int(f.number_or("hidden_ratio", 4.0) * f.count("hidden_size") * 2 / 3)
        width = -(-wanted // 256) * 256
    f.skip("hidden_ratio")
    return channels.Channel(mlp=Mlp(intermediate_size=width))
