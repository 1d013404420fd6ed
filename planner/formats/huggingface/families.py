"""Who says it how: the readers of each `model_type`, and who is refused and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from planner.formats.huggingface import channels, fla, layers
from planner.formats.huggingface.channels import Channel
from planner.formats.huggingface.fields import ConfigFields
from planner.formats.huggingface.layers import Layers


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one `model_type` says its layers, its channel mixers, and what it leaves unsaid."""

    layers: Callable[[ConfigFields], Layers]
    channel: Callable[[ConfigFields], Channel]
    tied: bool = False
    defaults: Mapping[str, int] | None = None


_GEMMA_3 = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
            "vocab_size": 262208, "sliding_window": 4096}  # fmt: skip
"""What Gemma 3's published files leave out: the defaults of its class in transformers."""

_DEEPSEEK = Family(layers=layers.all_mla, channel=channels.deepseek_moe)
_QWEN = Family(layers=layers.qwen, channel=channels.dense)
_QWEN_MOE = Family(layers=layers.qwen, channel=channels.qwen_moe)
_MISTRAL = Family(layers=layers.mistral, channel=channels.dense)
_GEMMA = Family(layers=layers.every(6), channel=channels.dense, tied=True, defaults=_GEMMA_3)
_MINIMAX = Family(layers=layers.minimax_original, channel=channels.mixtral_moe)

FAMILIES: dict[str, Family] = {
    "llama": Family(layers=layers.all_full, channel=channels.dense),
    "granite": Family(layers=layers.all_full, channel=channels.dense),
    "mistral": _MISTRAL,
    "mixtral": Family(layers=layers.mistral, channel=channels.mixtral_moe),
    "phi3": _MISTRAL,
    "olmo2": Family(layers=layers.all_full, channel=channels.dense),
    "olmo3": Family(layers=layers.every(4), channel=channels.dense),
    "qwen2": _QWEN,
    "qwen3": _QWEN,
    "qwen3_vl_text": _QWEN,
    "qwen2_moe": _QWEN_MOE,
    "qwen3_moe": _QWEN_MOE,
    "qwen3_vl_moe_text": _QWEN_MOE,
    "qwen3_next": Family(layers=layers.qwen_next, channel=channels.qwen_moe),
    "qwen3_5_text": Family(layers=layers.qwen_next, channel=channels.dense),
    "qwen3_5_moe_text": Family(layers=layers.qwen_next, channel=channels.qwen_moe),
    "olmo_hybrid": Family(layers=layers.olmo_hybrid, channel=channels.dense),
    "kimi_linear": Family(layers=layers.kimi_linear, channel=channels.deepseek_moe),
    "kimi_k2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "minimax": Family(layers=layers.minimax, channel=channels.mixtral_moe),
    "minimax_m1": _MINIMAX,
    "minimax_text_01": _MINIMAX,
    "minimax_m2": _MINIMAX,
    "nemotron_h": Family(layers=layers.nemotron_h, channel=channels.nemotron_h),
    "bamba": Family(layers=layers.bamba, channel=channels.dense),
    "granitemoehybrid": Family(layers=layers.granite, channel=channels.granite),
    "mamba2": Family(layers=layers.pure_mamba2, channel=channels.bare),
    "gemma2": Family(layers=layers.every(2), channel=channels.dense, tied=True),
    "gemma3_text": _GEMMA,
    "gpt_oss": Family(layers=layers.every(2), channel=channels.mixtral_moe),
    "cohere2": Family(layers=layers.every(4), channel=channels.dense, tied=True),
    "gated_deltanet": Family(layers=fla.mixed(fla.delta("gated_deltanet")), channel=fla.mlp),
    "kda": Family(layers=fla.mixed(fla.delta("kda")), channel=fla.mlp),
    "linear_attn": Family(layers=fla.mixed(fla.linear), channel=fla.mlp),
    "transformer": Family(layers=fla.transformer, channel=fla.mlp),
}
"""By `model_type`, of the `text_config` where there is one."""

_NO_MAMBA_1 = "has Mamba-1 layers, which are not on paper here"
_NO_SPARSE = "has sparse attention, which is not on paper here"
_NO_FLA = "is of a recurrent mixer that is not on paper here"
NOT_ON_PAPER: dict[str, str] = {
    **dict.fromkeys(("mamba", "falcon_mamba", "jamba", "samba", "phi4flash"), _NO_MAMBA_1),
    **dict.fromkeys(("deepseek_v32", "deepseek_v4", "glm_moe_dsa", "minimax_m3"), _NO_SPARSE),
    **dict.fromkeys(
        ("gla", "delta_net", "retnet", "hgrn", "hgrn2", "rwkv6", "rwkv7", "xlstm", "rwkv"), _NO_FLA
    ),
    "falcon_h1": "runs attention and Mamba-2 side by side in each layer, which no layer list says",
    "hymba": "runs attention and Mamba side by side in each layer, which no layer list says",
    "zamba2": "shares one attention block between layers, which no layer list says",
    "lfm2": "has layers of short convolutions alone, which are not on paper here",
    "recurrent_gemma": "has RG-LRU layers, which are not on paper here",
    "llama4_text": "attends in chunks, which is neither full attention nor a window",
    "gemma3n_text": "shares keys and values between layers, which no layer list says",
    "gemma4_text": "has heads, keys and experts that differ by layer in ways not read here",
}
"""Known, and refused with the reason."""
