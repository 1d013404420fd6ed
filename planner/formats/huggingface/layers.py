"""Which mixer each layer has, by each family's own rule.

Every function takes the fields and returns one mixer a layer, in order; None where a layer has
only a channel mixer (Nemotron-H).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from planner.formats.huggingface import mixers
from planner.formats.huggingface.fields import MAX_LAYERS, ConfigFields
from planner.mixers import MixerSpec

Layers = Sequence[MixerSpec | None]

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
_LEGACY = {"attention": FULL, "mamba": LINEAR}
"""What transformers before 5 called them."""


_FIELDS_OF = {
    FULL: r"num_attention_heads|num_key_value_heads|(attention_)?head_dim",
    SLIDING: r"_?sliding_window(_pattern)?",
    LINEAR: r"(linear|mamba|ssm)_.*|n_groups|conv_kernel|expand",
}


def num_layers(f: ConfigFields) -> int:
    return f.count("num_hidden_layers", high=MAX_LAYERS)


def by_type(
    f: ConfigFields, types: Sequence[str], specs: Mapping[str, Callable[[], MixerSpec | None]]
) -> Layers:
    """Each layer's mixer by its type's name; the fields of a type that no layer has lie idle."""
    for i, name in enumerate(types):
        if name not in specs:
            known = ", ".join(specs)
            raise f.fail(f"layer {i} has type {name!r}, which is not understood; known: {known}")
    for name in set(specs) - set(types):
        f.skip_like(_FIELDS_OF.get(name, ""))
    made = {name: specs[name]() for name in dict.fromkeys(types)}
    return [made[name] for name in types]


def listed(
    f: ConfigFields, otherwise: Callable[[int], str] | None, name: str = "layer_types"
) -> list[str]:
    """`layer_types`, or the family's rule for layer i of a file that does not list them."""
    found = f.words(name)
    if found is None:
        if otherwise is None:
            raise f.fail(f"{name} is missing")
        return [otherwise(i) for i in range(num_layers(f))]
    if f.has("num_hidden_layers") and len(found) != num_layers(f):
        raise f.fail(f"{name} lists {len(found)} layers, num_hidden_layers is {num_layers(f)}")
    if not found:
        raise f.fail(f"{name} is empty")
    return [_LEGACY.get(word, word) for word in found]


def all_full(f: ConfigFields) -> Layers:
    return [mixers.attention(f)] * num_layers(f)


def all_mla(f: ConfigFields) -> Layers:
    return [mixers.mla(f)] * num_layers(f)


def mistral(f: ConfigFields) -> Layers:
    """A window, where there is one, is every layer's; newer files list the layers."""
    window = f.optional("sliding_window")
    types = listed(f, lambda i: FULL if window is None else SLIDING)
    return attention_types(f, types, window)


def qwen(f: ConfigFields) -> Layers:
    """The window counts only with `use_sliding_window`, from layer `max_window_layers` on."""
    on = f.flag("use_sliding_window", False)
    window = f.optional("sliding_window") if on else None
    f.skip("sliding_window")
    first = f.count_or("max_window_layers", MAX_LAYERS, low=0)
    types = listed(f, lambda i: SLIDING if window is not None and i >= first else FULL)
    return attention_types(f, types, window)


def every(period: int) -> Callable[[ConfigFields], Layers]:
    """Windows with a full layer at each `period`-th, unless the file says otherwise."""

    def read(f: ConfigFields) -> Layers:
        name = f.first(("sliding_window_pattern", "_sliding_window_pattern"))
        each = f.count_or(name, period)
        types = listed(f, lambda i: SLIDING if (i + 1) % each else FULL)
        return attention_types(f, types, f.optional("sliding_window"))

    return read


def attention_types(f: ConfigFields, types: Sequence[str], window: int | None) -> Layers:
    def sliding() -> MixerSpec:
        if window is None:
            raise f.fail("sliding_window is missing, but layers are sliding_attention")
        return mixers.attention(f, window)

    return by_type(f, types, {FULL: lambda: mixers.attention(f), SLIDING: sliding})


def qwen_next(f: ConfigFields) -> Layers:
    """Full layers gate their output: Qwen3-Next always, Qwen3.5 as `attn_output_gate` says."""
    each = f.count_or("full_attention_interval", 4)
    gate = f.flag("attn_output_gate", True)
    return by_type(
        f,
        listed(f, lambda i: LINEAR if (i + 1) % each else FULL),
        {FULL: lambda: mixers.attention(f, gate=gate), LINEAR: lambda: mixers.gated_deltanet(f)},
    )


def olmo_hybrid(f: ConfigFields) -> Layers:
    specs = {FULL: lambda: mixers.attention(f), LINEAR: lambda: mixers.gated_deltanet(f)}
    return by_type(f, listed(f, None), specs)


def kimi_linear(f: ConfigFields) -> Layers:
    """`linear_attn_config` lists the layers of both kinds, counted from 1."""
    nested = f.inside("linear_attn_config")
    full = nested.counts("full_attn_layers") if nested else None
    linear = nested.counts("kda_layers") if nested else None
    if f.has("layer_types") or full is None or linear is None:
        types = listed(f, None)
    else:
        n = num_layers(f)
        if sorted(full + linear) != list(range(1, n + 1)):
            raise f.fail(
                f"linear_attn_config must list each layer from 1 to {n} once, in full_attn_layers "
                f"or kda_layers"
            )
        types = [FULL if i + 1 in full else LINEAR for i in range(n)]
    return by_type(f, types, {FULL: lambda: mixers.mla(f), LINEAR: lambda: mixers.kda(f)})


def minimax(f: ConfigFields) -> Layers:
    """transformers' class, which reads `layer_types` alone: the older `attn_type_list` is silently
    ignored by it and would say another model."""
    if f.has("attn_type_list"):
        raise f.fail(
            "attn_type_list is ignored by transformers for minimax; give layer_types, "
            "or the original model_type minimax_m1 or minimax_text_01"
        )
    f.skip("sliding_window")
    specs = {FULL: lambda: mixers.attention(f), LINEAR: lambda: mixers.lightning(f)}
    return by_type(f, listed(f, None), specs)


def minimax_original(f: ConfigFields) -> Layers:
    """`attn_type_list`: 1 is full attention, 0 lightning. M2 may leave it out: it is all full."""
    codes = f.counts("attn_type_list", high=1)
    if codes is None and f.word("model_type") == "minimax_m2":
        return all_full(f)
    if codes is None or len(codes) != num_layers(f):
        raise f.fail(f"attn_type_list must list {num_layers(f)} layers, 0 or 1 each")
    types = [FULL if code else LINEAR for code in codes]
    return by_type(
        f, types, {FULL: lambda: mixers.attention(f), LINEAR: lambda: mixers.lightning(f)}
    )


_NEMOTRON = {"M": LINEAR, "*": FULL, "-": "mlp", "E": "moe"}


def nemotron_types(f: ConfigFields) -> list[str]:
    """Mixers and channel mixers take turns in one list: letters, or words."""
    if not f.has("hybrid_override_pattern"):
        return listed(f, None, f.first(("layers_block_type", "layer_types")))
    letters = f.get("hybrid_override_pattern")
    f.skip("layers_block_type", "layer_types")
    if not isinstance(letters, str) or not 0 < len(letters) <= MAX_LAYERS:
        raise f.fail(
            f"hybrid_override_pattern must be a letter a layer, at most {MAX_LAYERS}, "
            f"got {letters!r:.40}"
        )
    if set(letters) - set(_NEMOTRON):
        raise f.fail(f"hybrid_override_pattern may have {''.join(_NEMOTRON)}, got {letters!r:.40}")
    if f.has("num_hidden_layers") and len(letters) != num_layers(f):
        raise f.fail(
            f"hybrid_override_pattern has {len(letters)} layers, num_hidden_layers is "
            f"{num_layers(f)}"
        )
    return [_NEMOTRON[c] for c in letters]


def nemotron_h(f: ConfigFields) -> Layers:
    f.skip("sliding_window", "expand")
    return by_type(
        f,
        nemotron_types(f),
        {
            FULL: lambda: mixers.attention(f),
            LINEAR: lambda: mixers.mamba2(f),
            "mlp": lambda: None,
            "moe": lambda: None,
        },
    )


def bamba(f: ConfigFields) -> Layers:
    """`attn_layer_indices`, counted from 0; newer files list `layer_types`."""
    at = set(f.counts("attn_layer_indices") or ())
    f.skip("mamba_expand")
    types = listed(f, lambda i: FULL if i in at else LINEAR)
    return by_type(f, types, {FULL: lambda: mixers.attention(f), LINEAR: lambda: mixers.mamba2(f)})


def granite(f: ConfigFields) -> Layers:
    f.skip("mamba_expand")
    types = listed(f, None, f.first(("layer_types", "layers_block_type")))
    return by_type(f, types, {FULL: lambda: mixers.attention(f), LINEAR: lambda: mixers.mamba2(f)})


def pure_mamba2(f: ConfigFields) -> Layers:
    f.skip("expand")
    return [mixers.mamba2(f)] * num_layers(f)
