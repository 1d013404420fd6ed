"""Cost scenario: what the Cost page's sidebar asks and the address bar holds.

Named in the address bar as on the Recommend page where both ask the same.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from urllib.parse import urlencode

import streamlit as st

from planner import catalog
from planner.architecture import Architecture, parse_ratio
from planner.catalog import Price
from planner.cost.price import usual_price
from planner.decision.advisor import SERVING_MODE, Device
from planner.errors import UsageError
from planner.mixers import MIXERS
from planner.ui import models
from planner.ui.glossary import GLOSSARY
from planner.ui.scenario import (
    DEGREES,
    DEVICE_DTYPE,
    KV_DTYPES,
    LENGTHS,
    WEIGHT_DTYPES,
    Range,
    Scenario,
    default_device,
    link_problems,
    read_length,
    read_or,
    tensor_parallel,
)
from planner.units import usd_text
from planner.workload import Traffic, format_tokens

NO_MIXER = "none"
LIST_PRICE = "list"
DEFAULT_MODEL = "llama-3.1-8b"
DEFAULT_RATIO, DEFAULT_PROMPT, DEFAULT_OUTPUT = "3:1", "32k", "512"
RATIOS = ("1:1", "2:1", "3:1", "4:1", "5:1", "7:1", "11:1", "1:0")
MODES = (SERVING_MODE, "eager")

PARAMETERS = (
    "model", "mixer", "ratio", "hardware", "prompt", "output", "concurrency", "weights", "kv",
    "tp", "engine", "mode", "price", "utilisation", "cache_hits",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CostScenario:
    """One question: a model, and what it would be with other mixers; `usd_per_hour` is None for
    the list's price. `mixer` is None to look at the model alone."""

    model: str
    mixer: str | None
    ratio: str
    hardware: str
    prompt_tokens: int
    output_tokens: int
    concurrency: int
    weights_dtype: str | None
    kv_dtype: str | None
    tensor_parallel: int
    engine: str
    mode: str
    usd_per_hour: float | None
    utilisation: float
    prefix_hit_rate: float

    def architectures(self) -> list[Architecture]:
        """The model as it is, then with the mixer. Raises UsageError for a ratio that is none."""
        arch = models.load(self.model)
        if self.mixer is None:
            return [arch]
        parse_ratio(self.ratio)
        return [arch, arch.with_mixer(self.mixer, self.ratio, name=f"{self.ratio} {self.mixer}")]

    def traffic(self) -> Traffic:
        return Traffic(
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            concurrency=self.concurrency,
            prefix_hit_rate=self.prefix_hit_rate,
            utilisation=self.utilisation,
        )

    def price(self) -> Price | None:
        if self.usd_per_hour is None:
            return usual_price(catalog.prices(), self.hardware)
        return Price(
            hardware=self.hardware,
            usd_per_hour=self.usd_per_hour,
            kind="own",
            source="typed on the page",
            read_on=date.today().isoformat(),
        )

    def command(self) -> str:
        """The same question on the command line."""
        words = ["attn-plan cost", shlex.quote(self.model), f"-g {self.hardware}"]
        if self.mixer is not None:
            words.append(f"--ratio {self.ratio} --mixer {self.mixer}")
        words.append(f"--prompt {self.prompt_tokens} --output-length {self.output_tokens}")
        words.append(f"-c {self.concurrency} --tp {self.tensor_parallel} --engine {self.engine}")
        options = {
            "--mode": self.mode if self.mode != SERVING_MODE else None,
            "--weights": self.weights_dtype,
            "--kv": self.kv_dtype,
            "--price": self.usd_per_hour,
        }
        words += [f"{name} {value}" for name, value in options.items() if value is not None]
        words.append(f"--utilisation {self.utilisation:g} --cache-hits {self.prefix_hit_rate:g}")
        return " ".join([*words, "--over-context 1k:256k"])


def cost_link(scenario: Scenario, mixer: str, ratio: str) -> str:
    """The address of this page about a design of the Recommend page, by its memory rules.

    Followed as a link of the browser's, in the same tab, which begins a session: one within the
    session loses parameters that both pages have. Going back returns to the recommendation.
    """
    found = {
        "model": scenario.model,
        "mixer": mixer if mixer in mixer_choices() else NO_MIXER,
        "ratio": ratio,
        "hardware": scenario.hardware,
        "prompt": format_tokens(scenario.prompt_tokens),
        "output": format_tokens(scenario.output_tokens),
        "concurrency": scenario.concurrency,
        "weights": scenario.weights_dtype,
        "kv": scenario.kv_dtype,
        "tp": scenario.tensor_parallel,
        "engine": catalog.DEFAULT_ENGINE,
    }
    return f"cost?{urlencode({k: v for k, v in found.items() if v is not None})}"


def mixer_choices() -> list[str]:
    return [NO_MIXER, *(m.name for m in MIXERS.values() if m.kind != "full")]


def misread(parameters: Mapping[str, str], devices: Iterable[str]) -> list[str]:
    """What of a link's parameters cannot be meant: a sentence each, with what is allowed."""
    choices: dict[str, Iterable[str]] = {
        "mixer": mixer_choices(),
        "hardware": devices,
        "weights": WEIGHT_DTYPES,
        "kv": KV_DTYPES,
        "tp": DEGREES,
        "engine": catalog.engine_ids(),
        "mode": MODES,
    }
    numbers: dict[str, Range] = {
        "concurrency": (1, None),
        "utilisation": (1, 100),
        "cache_hits": (0, 99),
    }
    return link_problems(parameters, PARAMETERS, choices=choices, numbers=numbers)


def sidebar(devices: Mapping[str, Device]) -> CostScenario:
    """Draws the controls and returns what they say; for text that cannot be read, says so and
    takes the default."""
    with st.sidebar:
        st.subheader("Scenario", anchor=False)
        model = _pick("Model", "model", catalog.model_ids(), DEFAULT_MODEL, typed=True)
        mixer = _pick("Against the same with", "mixer", mixer_choices(), "gated_deltanet")
        ratio = _pick("Ratio, linear:full", "ratio", RATIOS, DEFAULT_RATIO, typed=True)
        hardware = _pick("Hardware", "hardware", list(devices), default_device(devices))
        st.caption(f"{devices[hardware].hardware.name}: {devices[hardware].basis_note}")
        prompt = _pick(
            "Prompt length, tokens", "prompt", LENGTHS, DEFAULT_PROMPT, "length", typed=True
        )
        output = _pick(
            "Output length, tokens", "output", LENGTHS, DEFAULT_OUTPUT, "length", typed=True
        )
        concurrency = st.number_input(
            "Concurrency, sequences", min_value=1, value=64, key="concurrency",
            help=GLOSSARY["concurrency"], bind="query-params",
        )  # fmt: skip
        weights, kv, degree, engine, mode = _deployment()
        usd, utilisation, hits = _price(hardware)
        st.caption("The address bar holds this scenario: copy it to share.")
    return CostScenario(
        model=read_or(models.loadable, model, DEFAULT_MODEL, "model"),
        mixer=None if mixer == NO_MIXER else mixer,
        ratio=read_or(_ratio, ratio, DEFAULT_RATIO, "ratio"),
        hardware=hardware,
        prompt_tokens=read_length("prompt", prompt, DEFAULT_PROMPT),
        output_tokens=read_length("output", output, DEFAULT_OUTPUT),
        concurrency=concurrency,
        weights_dtype=None if weights == DEVICE_DTYPE else weights,
        kv_dtype=None if kv == DEVICE_DTYPE else kv,
        tensor_parallel=degree,
        engine=engine,
        mode=mode,
        usd_per_hour=read_or(parse_price, usd, LIST_PRICE, "price"),
        utilisation=utilisation / 100,
        prefix_hit_rate=hits / 100,
    )


def _ratio(text: str) -> str:
    """`text`, once it is known to be a ratio. Raises UsageError."""
    parse_ratio(text)
    return text


def _pick(
    label: str, key: str, options: Sequence[str], default: str, help: str = "", *,
    typed: bool = False,
) -> str:  # fmt: skip
    """A selectbox in the link; `typed` ones take any text."""
    return str(
        st.selectbox(
            label,
            options,
            index=list(options).index(default),
            key=key,
            help=GLOSSARY.get(help or key),
            accept_new_options=typed,
            bind="query-params",
        )
    )


def _deployment() -> tuple[str, str, int, str, str]:
    with st.expander("Deployment", icon=":material/memory:"):
        weights = _pick("Weights", "weights", WEIGHT_DTYPES, DEVICE_DTYPE)
        kv = _pick("KV cache", "kv", KV_DTYPES, DEVICE_DTYPE)
        degree = tensor_parallel()
        engine = _pick("Engine's memory rules", "engine", catalog.engine_ids(), "vllm")
        st.caption(
            f"{catalog.load_engine(engine).name}, read {catalog.load_engine(engine).read_on}"
        )
        mode = _pick("Launches", "mode", MODES, SERVING_MODE)
    return weights, kv, degree, engine, mode


def _price(hardware: str) -> tuple[str, int, int]:
    listed = usual_price(catalog.prices(), hardware)
    with st.expander("Price", icon=":material/payments:", expanded=True):
        usd = st.text_input(
            "US dollars an hour and device", value=LIST_PRICE, key="price",
            help=GLOSSARY["price"], bind="query-params",
        )  # fmt: skip
        if listed is not None:
            st.caption(f"list: {usd_text(listed.usd_per_hour)}, {listed.kind}, {listed.read_on}")
        utilisation = st.slider(
            "Utilisation, %", min_value=1, max_value=100, value=100, key="utilisation",
            help=GLOSSARY["utilisation"], bind="query-params",
        )  # fmt: skip
        hits = st.slider(
            "Prefix-cache hits, %", min_value=0, max_value=99, value=0, key="cache_hits",
            help=GLOSSARY["cache_hits"], bind="query-params",
        )  # fmt: skip
    return usd, int(utilisation), int(hits)


def parse_price(text: str) -> float | None:
    """Reads "2.5" as 2.5, "list" or nothing as None. Raises UsageError."""
    if text.strip().lower() in ("", LIST_PRICE):
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UsageError(
            f"US dollars an hour: must be a number above 0, or {LIST_PRICE} for the price list's; "
            f"got {text!r}"
        )
    return value
