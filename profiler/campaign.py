"""The whole data set of a GPU, part by part, in as many runs as it takes.

A part is a `Grid`: which models' shapes, mixers, phases and lengths. They stand in order of worth,
and a run with a budget works through them: what earlier runs finished is skipped, the coarse
points of all parts come first, then part by part the most informative. A folder carries everything
from one machine to the next, which may be bare and without network:

    points.csv, points.environments.json     every point so far, raw samples included
    compile-cache-N.tar.gz                   compiled kernels and tuned configurations

On a CPU the same parts run on shrunken shapes and lengths, as a rehearsal of every kind of point.

    attn-profile campaign --folder h200 --budget 9m
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from planner.architecture import Architecture, Mlp, Moe
from planner.catalog import load_model, model_ids
from planner.mixers import MixerSpec
from planner.store import Store
from planner.store.files import environments_path, read_points
from planner.workload import parse_lengths
from profiler import plan
from profiler.compile_cache import load, save_parts
from profiler.device import Device
from profiler.plan import Grid, PlannedJob
from profiler.protocol import Job

LENGTHS = tuple(parse_lengths("1k:128k"))
LONG_LENGTHS = tuple(parse_lengths("256k:1m"))
STACK_LENGTHS = (1024, 8192, 131072)  # those of the default sweep
BATCHES = (1, 8, 64, 256)
RATIOS = ("0:1", "1:1", "3:1", "5:1", "7:1", "11:1", "1:0")
WINDOWS = (128, 512, 1024, 2048, 4096, 8192)
SEGMENTS = (8192,)
GQA = "llama-3.1-8b"


@dataclass(frozen=True)
class Part:
    """A named grid; `energy` measures joules too."""

    name: str
    grid: Grid
    energy: bool = False


def parts(dtype: str) -> list[Part]:
    """In order of worth."""
    mixers = Grid(lengths=LENGTHS, batches=BATCHES, dtype=dtype)
    alone = replace(mixers, dense=False)
    stacks = replace(mixers, lengths=STACK_LENGTHS, batches=(1,), kernels=False, dense=False)
    linear = ("gated_deltanet", "mamba2", "linear_attention", "sliding_window")
    return [
        Part("8B layer", replace(mixers, shapes=(GQA,))),
        Part(
            "Qwen3-Next",
            replace(
                mixers,
                shapes=("qwen3-next-80b-a3b",),
                mixers=("full_attention", "gated_deltanet"),
            ),
        ),
        Part(
            "Kimi Linear",
            replace(mixers, shapes=("kimi-linear-48b-a3b",), mixers=("mla", "kda")),
        ),
        Part(
            "Gemma 3",
            replace(mixers, shapes=("gemma-3-27b",), mixers=("full_attention", "sliding_window")),
        ),
        Part(
            "Nemotron-H",
            replace(mixers, shapes=("nemotron-h-8b",), mixers=("full_attention", "mamba2")),
        ),
        Part(
            "stacks",
            replace(stacks, shapes=(GQA,), mixers=linear, ratios=RATIOS, mlp=True),
        ),
        Part(
            "stacks, Kimi Linear",  # its channel mixer is a mixture of experts: no MLP
            replace(
                stacks,
                shapes=("kimi-linear-48b-a3b",),
                mixers=("mla", "kda"),
                ratios=("0:1", "3:1", "1:0"),
            ),
        ),
        Part(
            "stacks, Nemotron-H",  # 24 Mamba-2 layers and 4 of attention: 6:1
            replace(
                stacks,
                shapes=("nemotron-h-8b",),
                mixers=("full_attention", "mamba2"),
                ratios=("0:1", "6:1", "1:0"),
                mlp=True,
            ),
        ),
        Part(
            "dense layers of the catalog",
            replace(
                mixers,
                shapes=tuple(id for id in model_ids() if id != "tiny"),
                mixers=("full_attention",),
                lengths=(1024, 8192, 32768),
                kernels=False,
            ),
        ),
        Part(
            "windows",
            replace(
                alone,
                shapes=(GQA,),
                mixers=("sliding_window",),
                windows=WINDOWS,
                lengths=(1024, 8192, 32768, 131072),
                batches=(1, 64),
                caches=("cold",),
            ),
        ),
        Part(
            "long",
            replace(
                alone,
                shapes=(GQA,),
                mixers=("full_attention", *linear, "lightning"),
                lengths=LENGTHS[-2:],
                batches=(1,),
                long_lengths=LONG_LENGTHS,
            ),
        ),
        Part(
            "long, Qwen3-Next and Kimi Linear",
            replace(
                alone,
                shapes=("qwen3-next-80b-a3b", "kimi-linear-48b-a3b"),
                mixers=("full_attention", "gated_deltanet", "mla", "kda"),
                lengths=LENGTHS[-2:],
                batches=(1,),
                long_lengths=LONG_LENGTHS,
            ),
        ),
        Part(
            "long, in segments",
            replace(
                alone,
                shapes=(GQA,),
                mixers=("gated_deltanet", "mamba2", "linear_attention"),
                lengths=LENGTHS[-2:],
                batches=(1,),
                phases=("prefill",),
                long_lengths=LONG_LENGTHS,
                segments=SEGMENTS,
            ),
        ),
        Part(
            "segments",
            replace(
                alone,
                shapes=(GQA,),
                mixers=("full_attention", *linear),
                batches=(1,),
                phases=("prefill", "segment"),
                segments=SEGMENTS,
            ),
        ),
        Part("lightning and KDA", replace(alone, shapes=(GQA,), mixers=("lightning", "kda"))),
        Part(
            "placements",
            replace(
                stacks,
                shapes=(GQA,),
                mixers=("gated_deltanet", "sliding_window"),
                ratios=("1:1", "3:1", "7:1"),
                placements=("uniform", "start", "middle", "end"),
            ),
        ),
        Part(
            "training",
            replace(
                alone,
                shapes=(GQA,),
                mixers=("full_attention", *linear),
                lengths=LENGTHS[:6],
                batches=(1, 8),
                phases=("training",),
            ),
        ),
        Part(
            "energy",
            # with all that stands around the mixers: a token's energy needs every kernel's power
            replace(
                mixers,
                shapes=(GQA,),
                mixers=("full_attention", "gated_deltanet"),
                lengths=(4096, 32768),
                batches=(1, 64),
                modes=("graph",),
                caches=("warm",),
                preferred_only=True,
            ),
            energy=True,
        ),
    ]


# A rehearsal on a CPU

SMALL_HIDDEN = 64
SMALLER = 256
"""A CPU's lengths are a GPU's over this."""


def shrunk(part: Part) -> Part:
    """The same kinds of points at lengths that a CPU passes in a moment."""
    grid = part.grid
    lengths = tuple(sorted({n // SMALLER for n in (*grid.lengths[:1], *grid.lengths[-2:])}))
    return replace(
        part,
        grid=replace(
            grid,
            lengths=lengths,
            long_lengths=tuple(n // SMALLER for n in grid.long_lengths),
            batches=grid.batches[:2],
            windows=tuple(max(1, w // SMALLER) for w in grid.windows[::3]),
            segments=tuple(n // SMALLER for n in grid.segments),
            segment_tokens=grid.segment_tokens // SMALLER,
        ),
    )


def small(architecture: Architecture) -> Architecture:
    """A model of the same make and tiny widths."""
    moe = architecture.moe
    return replace(
        architecture,
        kinds={letter: small_mixer(spec) for letter, spec in architecture.kinds.items()},
        hidden_size=SMALL_HIDDEN,
        vocab_size=512,
        mlp=architecture.mlp and Mlp(intermediate_size=96, gated=architecture.mlp.gated),
        moe=moe and Moe(num_experts=8, top_k=2, expert_intermediate_size=32, gated=moe.gated),
    )


def small_mixer(spec: MixerSpec) -> MixerSpec:
    """Two heads where the most have one group, four where heads are grouped."""
    heads = {
        name: 2 * (1 + (getattr(spec, name) > spec.num_k_heads))
        for name in ("num_q_heads", "num_k_heads", "num_v_heads")
    }
    return replace(
        spec,
        **heads,
        k_head_dim=16,
        v_head_dim=16,
        window=spec.window and 16,
        kv_lora_rank=spec.kv_lora_rank and 32,
        q_lora_rank=spec.q_lora_rank and 32,
        rope_head_dim=spec.rope_head_dim and 8,
    )


# The plan


def jobs(device: Device) -> list[PlannedJob]:
    """All parts for this device, numbered; a job that several parts share is in the first."""
    found: dict[tuple[Job, bool], PlannedJob] = {}
    for number, part in enumerate(parts(device.default_dtype)):
        energy = part.energy and device.kind == "cuda"
        for planned in part_jobs(part, device):
            found.setdefault((planned.job, energy), replace(planned, part=number, energy=energy))
    return list(found.values())


def part_jobs(part: Part, device: Device) -> Iterator[PlannedJob]:
    models = [load_model(shape) for shape in part.grid.shapes]
    if device.kind == "cpu":
        part, models = shrunk(part), [small(model) for model in models]
    yield from plan.build(part.grid, device, models)


# The folder

POINTS = "points.csv"
CACHE = "compile-cache-{}.tar.gz"


def unpack(folder: Path, opened: Store, *, compiled: bool = True) -> tuple[int, int]:
    """Takes into the store, as its own, what of the folder's points it has not or not so new,
    and, if `compiled`, loads its compiled kernels; counts both."""
    found = 0
    if (folder / POINTS).exists():
        environments, points = read_points(folder / POINTS)
        found = opened.adopt(environments.values(), points)
    archives = sorted(folder.glob(CACHE.format("*"))) if compiled else []
    return found, sum(load(archive) for archive in archives)


def pack(folder: Path, opened: Store, device: Device) -> list[Path]:
    """Writes what the next run needs to the folder; of points nothing where there are none."""
    written: list[Path] = []
    if not opened.points().empty:
        opened.export_csv(folder / POINTS)
        written = [folder / POINTS, environments_path(folder / POINTS)]
    if device.kind == "cuda":
        written += save_parts(folder, CACHE)
    return written
