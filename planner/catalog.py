"""The catalog: hardware, models, engines and prices as data files, each with source and date.

It only reads. A file without a source and the day it was read, with a key that nobody knows, or
with broken TOML is refused in one line that names the file.

    >>> load_model("llama-3-70b").kv_cache_bytes(131072)
    42949672960.0
    >>> load_hardware("h200-sxm").memory_bytes > 140e9
    True
"""

from __future__ import annotations

import csv
import re
import tomllib
from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import MISSING, dataclass, fields
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast, get_args

from planner.architecture import Architecture, LayerPattern, Mlp, Moe
from planner.engine import IDEAL, EngineRules
from planner.errors import EnvironmentProblem, UnknownName, UsageError
from planner.hardware import Hardware
from planner.mixers import MixerSpec

PROVENANCE = ("source", "read_on")

PriceKind = Literal["on-demand", "reserved", "marketplace", "own"]
PRICE_COLUMNS = ("hardware", "usd_per_hour", "kind", "source", "read_on")


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A released model: its architecture and what its publisher says about it.

    Parameter counts are the published ones, in units of 10⁹; `active_parameters_b` is None for
    dense models. `notes` says what could not be checked against a copy of the model's config.
    """

    id: str
    architecture: Architecture
    parameters_b: float
    active_parameters_b: float | None
    source: str
    read_on: str
    notes: str


@dataclass(frozen=True, kw_only=True)
class Price:
    """What one device costs an hour, from one public list on one day."""

    hardware: str
    usd_per_hour: float
    kind: PriceKind
    source: str
    read_on: str


@cache
def data_dir() -> Path:
    """Where the data files are: inside the installed package, or `data/` of a checkout.

    Raises: EnvironmentProblem if neither is there.
    """
    package = Path(__file__).parent
    for candidate in (package / "_data", package.parent / "data"):
        if candidate.is_dir():
            return candidate
    raise EnvironmentProblem(
        "the data files are missing: neither planner/_data nor data/ exists; "
        "run `pip install --force-reinstall attention-planner`"
    )


def read_toml(path: Path) -> dict[str, Any]:
    """One entry. Raises UsageError, in one line, naming the file and the place in it."""
    where = f"{path.parent.name}/{path.name}"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{where} is not TOML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise EnvironmentProblem(f"cannot read {path}: {error.strerror}") from None


def check_provenance(data: Mapping[str, Any], where: str) -> None:
    """Every fact says where it was read and on which day. Raises UsageError if not."""
    for key in PROVENANCE:
        if not data.get(key):
            raise UsageError(f"{where} has no {key}: every entry needs `source` and `read_on`")
    iso_date(data["read_on"], where)


def iso_date(value: Any, where: str) -> str:
    """The day as "2026-11-23", whether TOML made a date of it or left it as text."""
    try:
        return date.fromisoformat(str(value)).isoformat()
    except ValueError:
        raise UsageError(
            f"{where}: read_on must be a date such as 2026-11-23, got {value!r}"
        ) from None


def read_folder(path: Path) -> dict[str, dict[str, Any]]:
    """All entries of a folder by id, in order of id. The file's name is the id.

    Raises: UsageError for an entry that is not valid, EnvironmentProblem without the folder.
    """
    if not path.is_dir():
        raise EnvironmentProblem(f"the data folder {path.name} is missing beside {path.parent}")
    found = {}
    for file in sorted(path.glob("*.toml")):
        data = read_toml(file)
        where = f"{path.name}/{file.name}"
        check_provenance(data, where)
        if data.get("id", file.stem) != file.stem:
            raise UsageError(f"{where}: id must be the file's name, got {data['id']!r}")
        found[file.stem] = {**data, "id": file.stem, "read_on": iso_date(data["read_on"], where)}
    return found


@cache
def _entries(folder: str) -> dict[str, dict[str, Any]]:
    return read_folder(data_dir() / folder)


def entries(folder: str) -> dict[str, dict[str, Any]]:
    """The entries of `data/<folder>`, checked for source and date; a copy, free to change."""
    return deepcopy(_entries(folder))


def _entry(folder: str, what: str, id: str) -> dict[str, Any]:
    known = _entries(folder)
    if id not in known:
        raise UnknownName(what, id, known)
    return deepcopy(known[id])


def check_keys(
    data: Mapping[str, Any], *, known: Collection[str], required: Collection[str], where: str
) -> None:
    """Refuses a key that nobody reads and the absence of one that somebody needs."""
    unknown = sorted(str(k) for k in set(data) - set(known))
    if unknown:
        raise UsageError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}")
    missing = [k for k in required if data.get(k) is None]
    if missing:
        raise UsageError(f"{where}: {missing[0]} is missing")


def number(value: Any, key: str, where: str) -> float:
    """A number greater than zero."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise UsageError(f"{where}: {key} must be a number above 0, got {value!r}")
    return float(value)


def _build(cls: type[Any], data: Any, where: str) -> Any:
    """A dataclass from a mapping, with the file's name in every complaint."""
    if not isinstance(data, Mapping):
        raise UsageError(f"{where} must hold keys and values, got {data!r}")
    required = [
        f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING
    ]
    check_keys(data, known={f.name for f in fields(cls)}, required=required, where=where)
    try:
        return cls(**data)
    except (UsageError, TypeError) as error:
        raise UsageError(f"{where}: {error}") from None


def hardware_ids() -> list[str]:
    return list(_entries("hardware"))


@cache
def load_hardware(id: str) -> Hardware:
    """The device `id`. Raises UnknownName, listing the devices there are."""
    return hardware_from(_entry("hardware", "hardware", id))


def hardware_from(data: dict[str, Any]) -> Hardware:
    """A checked device from an entry's keys; they are `Hardware`'s fields and `notes`."""
    where = f"hardware/{data['id']}.toml"
    facts = {k: v for k, v in data.items() if k != "notes"}
    peaks = facts.get("peak_flops")
    if not isinstance(peaks, Mapping) or not peaks:
        raise UsageError(f"{where}: peak_flops must list FLOP/s per dtype, got {peaks!r}")
    facts["peak_flops"] = {d: number(v, f"peak_flops.{d}", where) for d, v in peaks.items()}
    facts["bandwidth"] = number(facts.get("bandwidth"), "bandwidth", where)
    if "link_bandwidth" in facts:
        facts["link_bandwidth"] = number(facts["link_bandwidth"], "link_bandwidth", where)
    facts["memory_bytes"] = int(number(facts.get("memory_bytes"), "memory_bytes", where))
    facts["device_names"] = tuple(facts.get("device_names") or ())
    return cast(Hardware, _build(Hardware, facts, where))


def hardware_for_device(name: str) -> Hardware | None:
    """The device whose driver calls it `name`, or None if the catalog does not have it."""
    wanted = name.strip().casefold()
    for id in hardware_ids():
        hardware = load_hardware(id)
        if wanted in (n.casefold() for n in hardware.device_names):
            return hardware
    return None


_MODEL_REQUIRED = ("id", "name", "hidden_size", "vocab_size", "pattern", "kinds", "parameters_b")
_MODEL_KEYS = (
    *_MODEL_REQUIRED,
    *PROVENANCE,
    "mlp",
    "moe",
    "num_dense_layers",
    "tied_embeddings",
    "max_context",
    "origin",
    "active_parameters_b",
    "notes",
)


def model_ids() -> list[str]:
    return list(_entries("models"))


def load_model(id: str) -> Architecture:
    """The architecture of the model `id`. Raises UnknownName, listing the models there are."""
    return model_entry(id).architecture


@cache
def model_entry(id: str) -> ModelEntry:
    """The model `id` with its published facts. Raises UnknownName as `load_model`."""
    return model_from(_entry("models", "model", id))


def model_from(data: dict[str, Any]) -> ModelEntry:
    """A checked model from an entry's keys."""
    where = f"models/{data['id']}.toml"
    check_keys(data, known=_MODEL_KEYS, required=_MODEL_REQUIRED, where=where)
    active = data.get("active_parameters_b")
    return ModelEntry(
        id=data["id"],
        architecture=_architecture(data, where),
        parameters_b=number(data["parameters_b"], "parameters_b", where),
        active_parameters_b=None if active is None else number(active, "active_…", where),
        source=data["source"],
        read_on=data["read_on"],
        notes=" ".join(str(data.get("notes") or "").split()),
    )


def _architecture(data: dict[str, Any], where: str) -> Architecture:
    kinds = data["kinds"]
    if not isinstance(kinds, Mapping) or any(len(str(letter)) != 1 for letter in kinds):
        raise UsageError(f"{where}: kinds must give each letter its mixer, got {kinds!r}")
    facts: dict[str, Any] = {
        "name": data["name"],
        "pattern": pattern_from(data["pattern"], where),
        "kinds": {k: _build(MixerSpec, v, f"{where} kinds.{k}") for k, v in kinds.items()},
        "hidden_size": data["hidden_size"],
        "vocab_size": data["vocab_size"],
    }
    for key, cls in (("mlp", Mlp), ("moe", Moe)):
        if data.get(key) is not None:
            facts[key] = _build(cls, data[key], f"{where} {key}")
    for key in ("num_dense_layers", "tied_embeddings", "max_context", "origin"):
        if data.get(key) is not None:
            facts[key] = data[key]
    return cast(Architecture, _build(Architecture, facts, where))


def pattern_from(runs: Any, where: str) -> LayerPattern:
    """[["SSSSSF", 10], ["SS", 1]] as a pattern: each run of letters so many times, in order."""
    shape = f"{where}: pattern must be [[letters, times], …], got {runs!r}"
    if not isinstance(runs, list) or not runs:
        raise UsageError(shape)
    for run in runs:
        if (
            not isinstance(run, list)
            or len(run) != 2
            or not isinstance(run[0], str)
            or type(run[1]) is not int
            or run[1] < 1
        ):
            raise UsageError(shape)
    try:
        return LayerPattern("".join(letters * times for letters, times in runs))
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


DEFAULT_ENGINE = "paged"


def engine_ids() -> list[str]:
    """The engines with rules, and "ideal", which rounds nothing."""
    return [IDEAL.id, *_entries("engines")]


@cache
def load_engine(id: str = DEFAULT_ENGINE) -> EngineRules:
    """How the engine `id` reserves memory. Raises UnknownName, listing the engines there are."""
    if id == IDEAL.id:
        return IDEAL
    known = _entries("engines")
    if id not in known:
        raise UnknownName("engine", id, engine_ids())
    return engine_from(deepcopy(known[id]))


def engine_from(data: dict[str, Any]) -> EngineRules:
    """Checked rules from an entry's keys; they are `EngineRules`' fields."""
    facts = {**data, "notes": " ".join(str(data.get("notes") or "").split())}
    return cast(EngineRules, _build(EngineRules, facts, f"engines/{data['id']}.toml"))


def prices(path: Path | None = None) -> list[Price]:
    """The price list: the shipped one, or the user's own file of the same columns.

    Raises: UsageError naming file and row for a price that is not one.
    """
    return list(_prices(path or data_dir() / "prices" / "gpu.csv"))


@cache
def _prices(path: Path) -> tuple[Price, ...]:
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            reader = csv.DictReader(handle)
            missing = [c for c in PRICE_COLUMNS if c not in (reader.fieldnames or ())]
            if missing:
                raise UsageError(
                    f"{path.name} is not a price list: column {missing[0]!r} is missing; it "
                    f"needs {','.join(PRICE_COLUMNS)}"
                )
            return tuple(
                _price(row, f"{path.name} row {n}") for n, row in enumerate(reader, start=2)
            )
    except FileNotFoundError:
        raise EnvironmentProblem(f"the price list {path} does not exist") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot read the price list {path}: {error}") from None


_AMOUNT = re.compile(r"\d+(\.\d+)?")


def _price(row: dict[str, str], where: str) -> Price:
    check_provenance(row, where)
    if row["hardware"] not in hardware_ids():
        raise UsageError(f"{where}: {UnknownName('hardware', row['hardware'], hardware_ids())}")
    if row["kind"] not in get_args(PriceKind):
        allowed = ", ".join(get_args(PriceKind))
        raise UsageError(f"{where}: kind must be one of {allowed}, got {row['kind']!r}")
    amount = row["usd_per_hour"]
    if not _AMOUNT.fullmatch(amount) or float(amount) == 0:
        raise UsageError(f"{where}: usd_per_hour must be a number above 0, got {amount!r}")
    return Price(
        hardware=row["hardware"],
        usd_per_hour=float(amount),
        kind=cast(PriceKind, row["kind"]),
        source=row["source"],
        read_on=iso_date(row["read_on"], where),
    )
