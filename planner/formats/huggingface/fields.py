"""ConfigFields: a model's config.json, read field by field, remembering which were read.

Whoever reads a field gets a checked value or an error that names the field. At the end
`refuse_unread` looks at what nobody read: a field that could change layers, heads or sizes and is
switched on is refused by name, because a model read without it would be another model.

    >>> f = ConfigFields({"num_hidden_layers": 2, "index_topk": 2048}, "config.json")
    >>> f.count("num_hidden_layers")
    2
    >>> f.refuse_unread()
    Traceback (most recent call last):
    planner.errors.UsageError: config.json: index_topk (2048) is not understood for this model_type
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from planner.errors import UsageError
from planner.formats.foreign import clean, number, text

MAX_LAYERS = 2048
MAX_SIZE = 1 << 26
"""No model is near these; a file that says more is broken or hostile."""

_STRUCTURAL = re.compile(
    r"layer|pattern|interval|window|sliding|sparse|chunk|head|expert|moe|mlp|mamba|ssm|conv|linear"
    r"|lora|state|attn|attention|index|block|recurrent|hybrid|expand|latent|shared|dense|intermed"
)
_HARMLESS = re.compile(
    r".*(_bias|_dropout|_pdrop|_eps|_epsilon|_init|_implementation|_dtype|_act|_softcapping|_scalar"
    r"|_multiplier|_coef|_alpha(_factor)?|_beta(_factor)?|_factor|_jitter(_noise)?|_func|_method"
    r"|_token_id|_token_index|_topk_prob|_min|_max|_floor|_limit|_kernels|_fp32|_theta)"
    r"|_.*|output_.*|router_.*|moe_router_.*|moe_renormalize|moe_aux_.*|mtp_.*|n(um)?_nextn_.*"
    r"|num_mtp_.*|linear_allow_neg_eigval|allow_neg_eigval|linear_a_log_.*|linear_dt_.*"
    r"|(mamba_)?chunk_size|chunk_size_feed_forward|block_size|attn_mode|pruned_heads"
    r"|cross_attention_.*|add_cross_attention|is_.*|use_cache|tie_.*|fuse_.*|num_expert_group"
    r"|n_group|topk_group|ep_size|auto_map|architectures|mlp_bias|moe_shared_expert_overlap"
    r"|quantization_config|use_(qk|rms)_?norm.*|qk_norm.*|initializer.*|bos_.*|eos_.*|pad_.*"
)
"""Fields with such words that change neither layers nor sizes: biases, norms, routers' losses,
initial values, kernels' block sizes, and the layers that only predict further tokens."""


class ConfigFields:
    """The fields of one object of a config.json; `where` names it in a complaint."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data, self.where = data, where
        self._read: set[str] = set()

    def get(self, name: str) -> Any:
        self._read.add(name)
        return self.data.get(name)

    def has(self, name: str) -> bool:
        return self.get(name) is not None

    def skip(self, *names: str) -> None:
        """Fields that are understood to make no difference here."""
        self._read.update(names)

    def skip_like(self, pattern: str) -> None:
        """Fields so named, as `skip`."""
        self._read.update(name for name in self.data if re.fullmatch(pattern, name))

    def fail(self, reason: str) -> UsageError:
        return UsageError(f"{self.where}: {reason}")

    def first(self, names: tuple[str, ...]) -> str:
        """The name of several that the file uses; the first if none."""
        return next((name for name in names if self.has(name)), names[0])

    def count(self, *names: str, low: int = 1, high: int = MAX_SIZE) -> int:
        """A whole number, under the first of `names` that is there."""
        name = self.first(names)
        if not self.has(name):
            raise self.fail(f"{' or '.join(names)} is missing")
        return self._whole(name, low, high)

    def optional(self, name: str, low: int = 1) -> int | None:
        """A whole number, None where it is null or absent."""
        return self._whole(name, low, MAX_SIZE) if self.has(name) else None

    def count_or(self, name: str, default: int, low: int = 1) -> int:
        """A whole number, `default` where it is null or absent."""
        found = self.optional(name, low)
        return default if found is None else found

    def _whole(self, name: str, low: int, high: int) -> int:
        value = number(self.get(name), name, self.where)
        if value != int(value) or not low <= value <= high:
            raise self.fail(
                f"{name} must be a whole number from {low} to {high}, got {self.data[name]!r:.40}"
            )
        return int(value)

    def number_or(self, name: str, default: float) -> float:
        """A number above 0, `default` where it is null or absent."""
        if not self.has(name):
            return default
        value = number(self.get(name), name, self.where)
        if value <= 0:
            raise self.fail(f"{name} must be above 0, got {value:g}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(f"{name} must be true or false, got {value!r:.40}")
        return value

    def word(self, name: str) -> str:
        return text(self.get(name), name, self.where)

    def words(self, name: str) -> list[str] | None:
        """A list of words, one a layer; None where it is null or absent."""
        found = self._items(name)
        return (
            None if found is None else [text(v, f"an entry of {name}", self.where) for v in found]
        )

    def counts(self, name: str, high: int = MAX_LAYERS) -> list[int] | None:
        """A list of whole numbers from 0 to `high`; None where it is null or absent."""
        found = self._items(name)
        if found is None:
            return None
        for v in found:
            if isinstance(v, bool) or not isinstance(v, int) or not 0 <= v <= high:
                raise self.fail(f"{name} must hold whole numbers from 0 to {high}, got {v!r:.40}")
        return found

    def _items(self, name: str) -> list[Any] | None:
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) > MAX_LAYERS:
            raise self.fail(f"{name} must be a list of at most {MAX_LAYERS}, got {value!r:.40}")
        return value

    def inside(self, name: str) -> ConfigFields | None:
        """A nested object; None where it is null or absent."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.fail(f"{name} must be an object, got {value!r:.40}")
        return ConfigFields(value, f"{self.where} {name}")

    def refuse_unread(self) -> None:
        """Raises UsageError for the first field that may matter, is on, and was not read."""
        for name, value in self.data.items():
            off = value is None or value in (False, 0, "", [], {})
            if (
                name not in self._read
                and not off
                and _STRUCTURAL.search(name)
                and not _HARMLESS.fullmatch(name)
            ):
                raise self.fail(
                    f"{clean(name)} ({value!r:.40}) is not understood for this model_type"
                )
