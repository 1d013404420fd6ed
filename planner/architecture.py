"""LayerPattern and Architecture: which mixer each layer uses, and how wide everything is.

A pattern is the exact layer list, one letter per layer, index 0 first. "3:1" is only a way to
generate or to show one; a ratio is always linear:full.

    >>> LayerPattern.from_ratio("3:1", 8, linear="G").letters
    'GGGFGGGF'
    >>> LayerPattern("GGGFGGGF").ratio_label(full="F")
    '3:1'
    >>> LayerPattern("S" * 5 + "F").every_full_at("F")
    (5,)

The letter "-" is a layer without a mixer (Nemotron-H's MLP layers). Where a pattern has any, only
those layers have a channel mixer; otherwise every layer has one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from planner.errors import UsageError
from planner.mixers import Gemm, MixerSpec, get_mixer

Placement = Literal["uniform", "start", "middle", "end", "first_last"]
PLACEMENTS: tuple[Placement, ...] = ("uniform", "start", "middle", "end", "first_last")

NO_MIXER = "-"

_RATIO = re.compile(r"(\d+):(\d+)")


def parse_ratio(text: str) -> tuple[int, int]:
    """Reads "3:1" as (linear, full). Raises UsageError unless it is two parts, not both 0."""
    match = _RATIO.fullmatch(text.strip())
    if match is None or match.groups() == ("0", "0"):
        raise UsageError(
            f"ratio must be linear:full with two whole numbers, such as 3:1, 0:1 "
            f"(all full) or 1:0 (none), got {text!r}"
        )
    return int(match[1]), int(match[2])


def full_layer_indices(num_layers: int, num_full: int, placement: Placement) -> tuple[int, ...]:
    """Where `num_full` full-attention layers stand among `num_layers`.

    uniform: the last of each equal stretch; start, middle, end: one block there; first_last:
    evenly from the first layer to the last, both included.
    """
    if not 0 <= num_full <= num_layers:
        raise UsageError(
            f"number of full layers must be between 0 and {num_layers}, got {num_full}"
        )
    if num_full == 0:
        return ()
    if placement == "uniform":
        return tuple((i + 1) * num_layers // num_full - 1 for i in range(num_full))
    if placement == "first_last":
        if num_full == 1:
            return (0,)
        return tuple(round(i * (num_layers - 1) / (num_full - 1)) for i in range(num_full))
    if placement not in PLACEMENTS:
        raise UsageError(f"unknown placement {placement!r}; known: {', '.join(PLACEMENTS)}")
    first = {"start": 0, "middle": (num_layers - num_full) // 2, "end": num_layers - num_full}
    return tuple(range(first[placement], first[placement] + num_full))


@dataclass(frozen=True)
class LayerPattern:
    """One letter per layer, zero-based."""

    letters: str

    def __post_init__(self) -> None:
        if not self.letters:
            raise UsageError("a layer pattern needs at least one layer")
        bad = sorted(set(re.sub(r"[A-Za-z*-]", "", self.letters)))
        if bad:
            raise UsageError(f"layer pattern has {bad[0]!r}; letters, * and - are allowed")

    def __len__(self) -> int:
        return len(self.letters)

    @classmethod
    def from_ratio(
        cls,
        ratio: str,
        num_layers: int,
        *,
        linear: str,
        full: str = "F",
        placement: Placement = "uniform",
    ) -> LayerPattern:
        """Full attention at r, 2r+1, … for r:1, remainder linear; a:b repeats a linear, b full.

        Other placements keep that number of full layers and move them.
        """
        a, b = parse_ratio(ratio)
        period = linear * a + full * b
        if placement == "uniform":
            tail = num_layers % len(period)
            return cls(period * (num_layers // len(period)) + (linear * a + full * b)[:tail])
        num_full = cls.from_ratio(ratio, num_layers, linear=linear, full=full).count(full)
        at = set(full_layer_indices(num_layers, num_full, placement))
        return cls("".join(full if i in at else linear for i in range(num_layers)))

    @classmethod
    def from_indices(
        cls, num_layers: int, full_at: Iterable[int], *, linear: str, full: str = "F"
    ) -> LayerPattern:
        at = set(full_at)
        outside = sorted(i for i in at if not 0 <= i < num_layers)
        if outside:
            raise UsageError(
                f"layer index must be between 0 and {num_layers - 1}, got {outside[0]}"
            )
        return cls("".join(full if i in at else linear for i in range(num_layers)))

    @classmethod
    def from_layer_types(
        cls, layer_types: Iterable[str], letters: Mapping[str, str]
    ) -> LayerPattern:
        """A config.json's `layer_types`, each translated by `letters` (type name to letter)."""
        found = []
        for i, name in enumerate(layer_types):
            if name not in letters:
                raise UsageError(
                    f"layer {i} has unknown type {name!r}; known: {', '.join(sorted(letters))}"
                )
            found.append(letters[name])
        return cls("".join(found))

    def count(self, letter: str) -> int:
        return self.letters.count(letter)

    def every_full_at(self, full: str) -> tuple[int, ...]:
        return tuple(i for i, letter in enumerate(self.letters) if letter == full)

    def mixer_letters(self) -> str:
        """The pattern without layers that have no mixer."""
        return self.letters.replace(NO_MIXER, "")

    def ratio_label(self, full: str = "F") -> str:
        """Says "3:1" where the counts divide, "≈5:1 (52+10)" where they do not."""
        mixers = self.mixer_letters()
        num_full = mixers.count(full)
        num_linear = len(mixers) - num_full
        if num_full == 0:
            return "1:0"
        if num_linear == 0:
            return "0:1"
        exact = "" if max(num_linear, num_full) % min(num_linear, num_full) == 0 else "≈"
        sides = (
            f"{num_linear / num_full:.0f}:1"
            if num_linear >= num_full
            else f"1:{num_full / num_linear:.0f}"
        )
        return f"{exact}{sides}" + (f" ({num_linear}+{num_full})" if exact else "")

    def run_length(self) -> str:
        """How a person writes a long pattern: "3G F 3G F"."""
        runs = re.finditer(r"(.)\1*", self.letters)
        return " ".join(f"{len(m[0])}{m[1]}" if len(m[0]) > 1 else m[1] for m in runs)


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """Dense channel mixer: gated (up, gate, down) or plain (up, down)."""

    intermediate_size: int
    gated: bool = True

    def projections(self, hidden_size: int) -> tuple[Gemm, ...]:
        up = self.intermediate_size * (2 if self.gated else 1)
        return (
            Gemm(role="mlp_up", in_features=hidden_size, out_features=up),
            Gemm(role="mlp_down", in_features=self.intermediate_size, out_features=hidden_size),
        )


@dataclass(frozen=True, kw_only=True)
class Moe:
    """Mixture of experts: `top_k` of `num_experts` per token, and a shared expert if any."""

    num_experts: int
    top_k: int
    expert_intermediate_size: int
    shared_intermediate_size: int = 0
    gated: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.num_experts:
            raise UsageError(
                f"top_k must be between 1 and num_experts = {self.num_experts}, got {self.top_k}"
            )

    def expert(self, hidden_size: int) -> tuple[Gemm, ...]:
        return Mlp(intermediate_size=self.expert_intermediate_size, gated=self.gated).projections(
            hidden_size
        )

    def shared(self, hidden_size: int) -> tuple[Gemm, ...]:
        if not self.shared_intermediate_size:
            return ()
        return Mlp(intermediate_size=self.shared_intermediate_size, gated=self.gated).projections(
            hidden_size
        )

    def router(self, hidden_size: int) -> Gemm:
        return Gemm(role="router", in_features=hidden_size, out_features=self.num_experts)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A whole model on paper: its layers, and what each letter of the pattern is.

    The first `num_dense_layers` layers with a channel mixer use `mlp`, later ones `moe` where the
    model has one. `origin`: trained from scratch, or converted from a full-attention model.
    """

    name: str
    pattern: LayerPattern
    kinds: Mapping[str, MixerSpec] = field(hash=False)
    hidden_size: int
    vocab_size: int
    mlp: Mlp | None = None
    moe: Moe | None = None
    num_dense_layers: int = 0
    tied_embeddings: bool = False
    max_context: int | None = None
    origin: Literal["scratch", "converted"] = "scratch"

    def __post_init__(self) -> None:
        missing = set(self.pattern.mixer_letters()) - set(self.kinds)
        if missing:
            raise UsageError(
                f"{self.name}: layer letter {sorted(missing)[0]!r} has no mixer; "
                f"kinds has {', '.join(sorted(self.kinds))}"
            )
        kinds = {get_mixer(spec.mixer).kind for spec in self.kinds.values()}
        bare = self.mlp is None and self.moe is None
        if bare and kinds != {"recurrent"} and self.hidden_size > 0 and self.vocab_size > 0:
            raise UsageError(f"{self.name}: needs mlp, moe or both; only recurrent stacks go bare")

    @property
    def num_layers(self) -> int:
        return len(self.pattern)

    def mixer_layers(self) -> list[tuple[int, MixerSpec]]:
        """(layer index, its mixer), layers without a mixer left out."""
        return [(i, self.kinds[c]) for i, c in enumerate(self.pattern.letters) if c != NO_MIXER]

    def counts(self) -> dict[MixerSpec, int]:
        """How many layers use each distinct mixer, in order of appearance."""
        return dict(self._counts)

    @cached_property
    def _counts(self) -> dict[MixerSpec, int]:
        found: dict[MixerSpec, int] = {}
        for _, spec in self.mixer_layers():
            found[spec] = found.get(spec, 0) + 1
        return found

    def channel_layers(self) -> tuple[int, int]:
        """(layers with the dense MLP, layers with the MoE)."""
        letters = self.pattern.letters
        total = letters.count(NO_MIXER) or len(letters)
        if self.moe is None:
            return total, 0
        dense = min(self.num_dense_layers, total) if self.mlp is not None else 0
        return dense, total - dense

    @property
    def full_letters(self) -> frozenset[str]:
        return frozenset(c for c, s in self.kinds.items() if get_mixer(s.mixer).kind == "full")

    @property
    def num_full_layers(self) -> int:
        return sum(self.pattern.count(c) for c in self.full_letters)

    @property
    def full_attention_share(self) -> float:
        """Full-attention layers among the layers with a mixer."""
        return self.num_full_layers / len(self.pattern.mixer_letters())

    @property
    def linear_mixer(self) -> str | None:
        """The non-full mixer; None for pure full attention. Raises if there are several."""
        names = self.linear_mixers
        if len(names) > 1:
            raise UsageError(f"{self.name} has several linear mixers: {', '.join(names)}")
        return names[0] if names else None

    @property
    def linear_mixers(self) -> tuple[str, ...]:
        """The non-full mixers, in order of appearance."""
        specs = [spec for _, spec in self.mixer_layers()]
        found = dict.fromkeys(s.mixer for s in specs if get_mixer(s.mixer).kind != "full")
        return tuple(found)

    def ratio_label(self) -> str:
        """Says "3:1", "≈5:1 (52+10)", "0:1" for pure full, "1:0" for pure linear."""
        merged = "".join(
            "F" if c in self.full_letters else "x" for c in self.pattern.mixer_letters()
        )
        return LayerPattern(merged).ratio_label("F")

    def describe(self) -> str:
        """Says "3:1 gated_deltanet:full", as the field writes it; of several "a+b:full"."""
        full = sorted({s.mixer for s in self.kinds.values() if get_mixer(s.mixer).kind == "full"})
        full_name = {"full_attention": "full"}.get(full[0], full[0]) if full else "full"
        linear = "+".join(self.linear_mixers)
        if not linear:
            return f"0:1 all {full_name}"
        if self.num_full_layers == 0:
            return f"1:0 all {linear}"
        return f"{self.ratio_label()} {linear}:{full_name}"

    def kv_cache_bytes(self, context: int, elem_bytes: float = 2.0) -> float:
        """Keys and values one sequence stores at `context` tokens, all layers; windows capped."""
        return float(
            sum(
                n * get_mixer(s.mixer).kv_cache_bytes(s, context, elem_bytes)
                for s, n in self.counts().items()
            )
        )

    def kv_slope_bytes(self, context: int, elem_bytes: float = 2.0) -> float:
        """Bytes the next token adds to the KV cache at `context` tokens."""
        return self.kv_cache_bytes(context + 1, elem_bytes) - self.kv_cache_bytes(
            context, elem_bytes
        )

    def state_bytes(self, elem_bytes: float = 4.0) -> float:
        """Recurrent and convolution state of one sequence, all layers; constant in context."""
        return float(
            sum(
                n * get_mixer(s.mixer).state_bytes(s, elem_bytes) for s, n in self.counts().items()
            )
        )

    def parameters(self) -> int:
        """Weights of projections, channel mixers and embeddings; norms, biases, convs ignored."""
        total = sum(
            n * sum(g.parameters for g in get_mixer(s.mixer).projections(s, self.hidden_size))
            for s, n in self.counts().items()
        )
        dense, sparse = self.channel_layers()
        if self.mlp is not None:
            total += dense * sum(g.parameters for g in self.mlp.projections(self.hidden_size))
        if self.moe is not None:
            per_layer = (
                self.moe.num_experts * sum(g.parameters for g in self.moe.expert(self.hidden_size))
                + sum(g.parameters for g in self.moe.shared(self.hidden_size))
                + self.moe.router(self.hidden_size).parameters
            )
            total += sparse * per_layer
        return total + self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)

    def active_parameters(self) -> int:
        """As `parameters` with `top_k` experts instead of all, and no input embedding."""
        total = self.parameters()
        if self.moe is not None:
            idle = self.moe.num_experts - self.moe.top_k
            per_expert = sum(g.parameters for g in self.moe.expert(self.hidden_size))
            total -= self.channel_layers()[1] * idle * per_expert
        if not self.tied_embeddings:
            total -= self.vocab_size * self.hidden_size
        return total

    def full_spec(self) -> MixerSpec:
        """The full-attention layers' dimensions: what other mixers are matched to."""
        for spec in self.kinds.values():
            if spec.mixer == "full_attention":
                return spec
        for spec in self.kinds.values():
            if get_mixer(spec.mixer).kind in ("full", "windowed"):
                return replace(
                    spec,
                    mixer="full_attention",
                    window=None,
                    kv_lora_rank=0,
                    q_lora_rank=0,
                    rope_head_dim=0,
                )
        raise UsageError(f"{self.name} has no attention layer to take head dimensions from")

    def spec_for(self, mixer: str) -> MixerSpec:
        """This mixer's dimensions in this model: its own, or matched to its attention."""
        for spec in self.kinds.values():
            if spec.mixer == mixer:
                return spec
        return get_mixer(mixer).matched(self.full_spec(), self.hidden_size)

    def _full_layer(self) -> tuple[str, MixerSpec]:
        """The letter and dimensions of the full layers a hybrid of this model keeps: its own."""
        for letter, spec in self.kinds.items():
            if get_mixer(spec.mixer).kind == "full":
                return letter, spec
        return "F", self.full_spec()

    def with_mixer(
        self, mixer: str, ratio: str, *, placement: Placement = "uniform", name: str | None = None
    ) -> Architecture:
        """The same model with its mixer layers replaced by `mixer` and full attention at `ratio`.

        The full layers are the model's own kind (full attention or MLA). Layers without a mixer
        keep their place.
        """
        linear = get_mixer(mixer).letter, self.spec_for(mixer)
        full = self._full_layer() if get_mixer(mixer).kind != "full" else linear
        slots = [i for i, c in enumerate(self.pattern.letters) if c != NO_MIXER]
        laid = LayerPattern.from_ratio(
            ratio, len(slots), linear=linear[0], full=full[0], placement=placement
        ).letters
        letters = list(self.pattern.letters)
        for i, letter in zip(slots, laid, strict=True):
            letters[i] = letter
        return replace(
            self,
            name=name or f"{self.name} {ratio} {mixer} {placement}",
            pattern=LayerPattern("".join(letters)),
            kinds={letter: spec for letter, spec in (full, linear) if letter in laid},
        )


def parse_placement(text: str) -> Placement:
    if text not in PLACEMENTS:
        raise UsageError(f"unknown placement {text!r}; known: {', '.join(PLACEMENTS)}")
    return text
