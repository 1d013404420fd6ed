"""Provider and Family: one implementation of a mixer, and all that is known of how to run one.

A `Family` is a mixer on silicon (the twin of `planner.mixers`): how to make its inputs, the
reference that defines the right answer, and the providers that are measured against it. Providers
are records, not subclasses; a lookup that fails lists what exists.

Legend: B batch, T new tokens, S cached tokens, H heads, K key dim, V value dim.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib import metadata
from typing import Any, Literal, Self

import torch
from torch import Tensor

from planner.errors import UnknownName
from planner.workload import Phase, Workload
from profiler.device import Device

TORCH_DTYPES: dict[str, torch.dtype] = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""Dtypes a kernel can be measured in here."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a call returns: `o` [B, T, H, V] (dense: [rows, out]) and the state it leaves, if any.

    `state` is [B, H, K, V] whatever layout the provider keeps it in. `grads` are those of the
    floating inputs, in a training call.
    """

    o: Tensor
    state: Tensor | None = None
    grads: tuple[Tensor | None, ...] = ()


Kernel = Callable[[Any], Output]
"""What `Provider.prepare` returns: takes inputs of the prepared shape, computes the output."""

Call = Callable[[], Output]
"""A kernel bound to its inputs: what is timed."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Tensors of one kernel call. Subclasses name them; these helpers work on any of them."""

    def tensors(self) -> dict[str, Tensor]:
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: t for name, t in found.items() if isinstance(t, Tensor)}

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, **{name: change(t) for name, t in self.tensors().items()})

    def to(self, dtype: torch.dtype) -> Self:
        """Every floating tensor in `dtype`; what was rounded stays rounded."""
        return self.map(lambda t: t.to(dtype) if t.is_floating_point() else t)

    def clone(self) -> Self:
        return self.map(torch.clone)

    def copies(self, n: int) -> list[Self]:
        """n of these, none of which reads from memory what a call on another one reads."""
        return [self.clone() for _ in range(n)]

    def copies_bytes(self, n: int) -> int:
        """What `copies(n)` take together."""
        return n * self.nbytes

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors().values())


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """A module a provider imports, the distribution that brings it, and how to get that."""

    module: str
    distribution: str
    get: str
    minimum: tuple[int, ...] = ()

    def missing(self) -> str | None:
        if not importable(self.module):
            return f"needs {self.distribution}: {self.get}"
        have = distribution_version(self.distribution)
        if have is not None and release(have) < self.minimum:
            wanted = ".".join(map(str, self.minimum))
            return f"needs {self.distribution} >= {wanted}, found {have}: {self.get}"
        return None


@cache  # a plan asks thousands of times
def importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


@cache
def distribution_version(name: str) -> str | None:
    """The installed version, or None for a module that is on the path without metadata."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def release(version: str) -> tuple[int, ...]:
    """ "3.7.1.post2+cu130" as (3, 7, 1)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


NEEDS_TRITON = Requirement(
    module="triton", distribution="triton", get="pip install 'attention-planner[gpu]'"
)
NEEDS_FLA = Requirement(
    module="fla",
    distribution="fla-core",
    get="pip install 'attention-planner[gpu]'",
    minimum=(0, 6, 0),  # older ones overflow int32 offsets in long sequences, silently (fla#1080)
)
NEEDS_MAMBA = Requirement(
    module="mamba_ssm",
    distribution="mamba-ssm",
    get="MAMBA_SKIP_CUDA_BUILD=TRUE pip install --no-deps --no-build-isolation mamba-ssm",
)


def tuned(*phases: Phase) -> dict[Phase, str]:
    """Versions of a provider whose tuner keeps one choice for many shapes, in these phases.

    1: made for the gate's two sequences of 1000 tokens; 2: made for the largest call; 3: made for
    the largest call of one sequence, and for that of several.
    """
    return dict.fromkeys(phases, "3")


def no_limits(workload: Workload, device: Device) -> str | None:
    return None


def as_made(inputs: Any) -> Any:
    return inputs


@dataclass(frozen=True, kw_only=True)
class Provider:
    """One implementation of a mixer. Asked for by name, never substituted.

    `prepare(inputs)` does what happens once per shape (masks, compilation set-up) and returns the
    kernel, which is then timed on these or on other inputs of that shape. `limits(workload,
    device)` gives the reason it cannot run that, or None. `lay_out(inputs)` moves what is carried
    between calls (state, tail) into the memory order the provider keeps it in; `in_place` says
    that its kernel overwrites that. `versions`, by phase, is for what this project does to a time:
    bump one when a kernel's code or how it is tuned changes it. Those of packages have theirs in
    the environment.
    """

    name: str
    prepare: Callable[[Any], Kernel]
    devices: tuple[Literal["cpu", "cuda"], ...]
    dtypes: tuple[str, ...]
    phases: tuple[Phase, ...] = ("prefill", "decode")
    requires: tuple[Requirement, ...] = ()
    limits: Callable[[Workload, Device], str | None] = no_limits
    lay_out: Callable[[Any], Any] = as_made
    in_place: bool = False
    versions: Mapping[Phase, str] = field(default_factory=dict)

    def missing(self) -> str | None:
        """Why its packages cannot be imported here, or None."""
        return next((why for r in self.requires if (why := r.missing())), None)

    def unsupported(self, workload: Workload, device: Device) -> str | None:
        """Why this provider cannot run this workload on this device, or None."""
        if device.kind not in self.devices:
            return f"{self.name} runs on {' and '.join(self.devices)}, not on {device.kind}"
        if (why := self.missing()) is not None:
            return why
        if workload.dtype not in self.dtypes:
            return f"{self.name} takes {', '.join(self.dtypes)}, not {workload.dtype}"
        if workload.phase not in self.phases:
            return f"{self.name} does {', '.join(self.phases)}, not {workload.phase}"
        return self.limits(workload, device)


@dataclass(frozen=True, kw_only=True)
class Family:
    """A mixer (or the dense layers) on silicon.

    - `make_inputs(workload, device, seed)`: random data as a trained model would feed.
    - `reference(inputs)`: the definition, in plain torch, computed in the inputs' dtype.
    - `probe(inputs, output, generator)`: for long calls, a part of the inputs small enough for the
      reference, and the part of the output that belongs to it; None where the whole is affordable.
    """

    name: str
    make_inputs: Callable[[Workload, torch.device, int], Any]
    reference: Callable[[Any], Output]
    providers: tuple[Provider, ...]
    probe: Callable[[Any, Output, torch.Generator], tuple[Any, Output] | None]

    def provider(self, name: str) -> Provider:
        """Raises UnknownName, listing this family's providers."""
        for provider in self.providers:
            if provider.name == name:
                return provider
        raise UnknownName(f"{self.name} provider", name, (p.name for p in self.providers))

    def available(self, device: Device) -> list[Provider]:
        """Providers whose device and packages are here, in order of preference."""
        return [p for p in self.providers if device.kind in p.devices and p.missing() is None]
