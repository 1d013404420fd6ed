"""A model's config.json as an Architecture: which mixer each layer has, and how wide it is.

    >>> read_config(Path("Qwen3-Next-80B-A3B-Instruct/config.json")).describe()   # doctest: +SKIP
    '3:1 gated_deltanet:full'

Each `model_type` has its own rule, because the same words mean different things: a
"linear_attention" layer is Gated DeltaNet in Qwen3-Next, lightning attention in MiniMax, Mamba-2
in Bamba. What is not in the table is refused by name, as is a field that would change the layers
and that nobody reads. Only the language model is read: no vision tower, no layers that predict
further tokens. Nothing of the file is run.

A `sliding_window` of W lets a query see W keys, itself included, as a window here does.
Source of the rules: transformers 5.23 and flash-linear-attention 0.6, configuration classes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from planner.architecture import NO_MIXER, Architecture, LayerPattern
from planner.errors import UnknownName, UsageError
from planner.formats.foreign import clean, parse_json, read_bytes
from planner.formats.huggingface.families import FAMILIES, NOT_ON_PAPER, Family
from planner.formats.huggingface.fields import ConfigFields
from planner.formats.huggingface.layers import Layers
from planner.mixers import MixerSpec, get_mixer

MAX_CONFIG_BYTES = 4 << 20


def is_path(text: str) -> bool:
    """Whether a text names a config.json or a folder (./model); else it is a catalog id."""
    return text.endswith(".json") or "/" in text or os.sep in text


def read_config(
    path: Path, *, origin: Literal["scratch", "converted"] = "scratch"
) -> Architecture:
    """The architecture in a config.json. A folder means the config.json in it.

    The file does not say whether the model was converted from another: `origin` does.

    Raises: UsageError naming the field that is missing, wrong or not understood; UnknownName for
        a model_type that is not in the table; EnvironmentProblem for a file that is not there.
    """
    file, data = _load(path)
    title = clean(str(data.get("_name_or_path") or "")) or clean(file.absolute().parent.name)
    return replace(parse_config(data, clean(file.name), title=title), origin=origin)


def stored_weights(path: Path) -> str | None:
    """How a config.json says that its weights are quantised, such as "fp8" or "awq"; None where
    it does not. Raises as `read_config`."""
    file, data = _load(path)
    whole = ConfigFields(data, clean(file.name))
    for fields in (whole, whole.inside("text_config")):
        found = fields and fields.inside("quantization_config")
        if found and found.data:
            return clean(str(found.get("quant_method") or "method not said"))
    return None


def _load(path: Path) -> tuple[Path, dict[str, object]]:
    """The file and the object in it."""
    file = path / "config.json" if path.is_dir() else path
    name = clean(file.name)
    data = parse_json(read_bytes(file, MAX_CONFIG_BYTES), name)
    if not isinstance(data, dict):
        raise UsageError(f"{name}: a config.json is an object, got {data!r:.40}")
    return file, data


def parse_config(data: Mapping[str, object], where: str, *, title: str = "") -> Architecture:
    """The architecture that the fields of a config.json describe. Raises as `read_config`."""
    whole = ConfigFields(data, where)
    fields = whole.inside("text_config") or whole
    family, model_type = _family(fields)
    if family.defaults:
        fields = ConfigFields({**family.defaults, **_given(fields.data)}, fields.where)
    letters, kinds = _lettered(family.layers(fields))
    channel = family.channel(fields)
    tied = whole.flag("tie_word_embeddings", family.tied)
    sizes = {
        "hidden_size": fields.count("hidden_size"),
        "vocab_size": fields.count("vocab_size"),
        "max_context": fields.optional(
            fields.first(("max_position_embeddings", "model_max_length", "max_seq_len"))
        ),
        "tied_embeddings": fields.flag("tie_word_embeddings", tied),
    }
    fields.refuse_unread()
    try:
        return Architecture(
            name=title or model_type,
            pattern=LayerPattern(letters),
            kinds=kinds,
            mlp=channel.mlp,
            moe=channel.moe,
            num_dense_layers=channel.num_dense_layers,
            **sizes,  # type: ignore[arg-type]
        )
    except UsageError as error:
        raise fields.fail(str(error)) from None


def _given(data: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in data.items() if value is not None}


def _family(fields: ConfigFields) -> tuple[Family, str]:
    model_type = fields.word("model_type")
    if model_type in NOT_ON_PAPER:
        raise fields.fail(f"model_type {model_type!r} {NOT_ON_PAPER[model_type]}")
    if model_type not in FAMILIES:
        raise UnknownName("model_type", model_type, FAMILIES)
    return FAMILIES[model_type], model_type


def _lettered(layers: Layers) -> tuple[str, dict[str, MixerSpec]]:
    """One letter per distinct mixer: the mixer's own, or the next free one."""
    letters: dict[MixerSpec, str] = {}
    for spec in layers:
        if spec is not None and spec not in letters:
            wanted = get_mixer(spec.mixer).letter + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
            letters[spec] = next(c for c in wanted if c not in letters.values())
    pattern = "".join(NO_MIXER if spec is None else letters[spec] for spec in layers)
    return pattern, {letter: spec for spec, letter in letters.items()}
