"""From a request to the list of points: which providers, workloads, modes and cache states.

The list is ordered coarse first: the ends of the length range for every mixer, then the middle,
then what lies between, so that a run that is cut short has measured every mixer over the range.
All providers of one workload stand together, so that they can be timed in turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, replace
from typing import Literal

from planner.architecture import (
    Architecture,
    LayerPattern,
    Mlp,
    Placement,
    parse_placement,
    parse_ratio,
)
from planner.errors import UnknownName, UsageError
from planner.mixers import MIXERS, MixerSpec, get_mixer
from planner.store.records import CacheState, Mode, point_key
from planner.workload import (
    ConvOp,
    DenseOp,
    ExpertsOp,
    MixerOp,
    Op,
    StackOp,
    Workload,
    parse_lengths,
)
from profiler.device import Device
from profiler.measure.timing import METHOD_VERSION, method_version
from profiler.protocol import Job
from profiler.providers import families, get_family
from profiler.providers.spec import TORCH_DTYPES, Provider
from profiler.segments import segment_of, variant_of
from profiler.stack import BLOCKS, provider_name, resolve

PlannedPhase = Literal["prefill", "segment", "decode", "training"]
PHASES: tuple[PlannedPhase, ...] = ("prefill", "segment", "decode", "training")

DEFAULT_MIXERS = (
    "full_attention",
    "sliding_window",
    "linear_attention",
    "gated_deltanet",
    "mamba2",
)
WARM_WITHIN_CACHES = 4
"""Warm times are taken while a call touches less than this many caches: beyond, warm is cold."""

EAGER_TOKENS = 16_384
"""Launches can matter up to about this many new tokens; longer calls are timed in graphs only."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What to measure. `providers` empty means all that are available.

    `preferred_only` keeps the first provider that can run a workload. `segments` are the sizes in
    which long prefills are measured as well, `segment_tokens` the new tokens of the segment phase.
    `windows` replace the models' own; the first is that of the stacks. `long_lengths` are measured
    of mixers alone, by the two fastest providers. `kernels`: mixers alone, outside of stacks.
    """

    shapes: tuple[str, ...] = ("tiny",)
    mixers: tuple[str, ...] = DEFAULT_MIXERS
    providers: tuple[str, ...] = ()
    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192)
    batches: tuple[int, ...] = (1,)
    phases: tuple[PlannedPhase, ...] = ("prefill", "decode")
    ratios: tuple[str, ...] = ()
    placements: tuple[Placement, ...] = ("uniform",)
    dtype: str = "fp32"
    windows: tuple[int, ...] = ()
    long_lengths: tuple[int, ...] = ()
    kernels: bool = True
    dense: bool = True
    mlp: bool = False
    modes: tuple[Mode, ...] = ()
    caches: tuple[CacheState, ...] = ()
    preferred_only: bool = False
    segments: tuple[int, ...] = ()
    segment_tokens: int = 2048  # the usual chunk of engines that split prefills

    def __post_init__(self) -> None:
        for mixer in self.mixers:
            get_mixer(mixer)
        for ratio in self.ratios:
            parse_ratio(ratio)
        for placement in self.placements:
            parse_placement(placement)
        if self.dtype not in TORCH_DTYPES:
            raise UsageError(f"dtype must be one of {', '.join(TORCH_DTYPES)}, got {self.dtype!r}")
        for batch in self.batches:
            if batch < 1:
                raise UsageError(f"batch must be at least 1, got {batch}")
        for phase in self.phases:
            if phase not in PHASES:
                raise UsageError(f"unknown phase {phase!r}; known: {', '.join(PHASES)}")
        longest = max(self.lengths)
        for window in self.windows:
            if not 1 <= window <= longest:
                raise UsageError(
                    f"window must be between 1 and the longest context, {longest} tokens, "
                    f"got {window}"
                )
        if self.long_lengths and min(self.long_lengths) <= longest:
            raise UsageError(
                f"long lengths must be beyond the usual ones, {longest} tokens, "
                f"got {min(self.long_lengths)}"
            )


@dataclass(frozen=True)
class Cell:
    """One point of a job: how it is launched and what is in the cache."""

    mode: Mode
    cache: CacheState

    @property
    def has_energy(self) -> bool:
        """Joules are those of a graph replayed back to back, so only its warm time is theirs."""
        return (self.mode, self.cache) == ("graph", "warm")


@dataclass(frozen=True, kw_only=True)
class PlannedJob:
    """A provider on a workload, with the points to measure of it.

    `level` 0 are the ends of the length range, then ever finer; `reason` says why it cannot run.
    `method`: the version of the timing method and, where it is the project's, of the kernel.
    `long`: of a length at which calls take seconds, so that each is dear. `part`: of a campaign,
    its parts being measured one after the other. With `energy` a graph's warm points also get
    their joules, and without them are not finished.
    """

    job: Job
    cells: tuple[Cell, ...]
    level: int
    reason: str = ""
    method: str = METHOD_VERSION
    long: bool = False
    part: int = 0
    energy: bool = False

    @property
    def worker_key(self) -> tuple[str, str]:
        return self.job.workload.op.family, self.job.provider


def parse_int_list(text: str, what: str) -> tuple[int, ...]:
    """ "1,8" as (1, 8), "1:64" as powers of two between. Raises UsageError."""
    try:
        return tuple(parse_lengths(text))
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from None


def levels(lengths: Iterable[int]) -> dict[int, int]:
    """Each length's level: 0 for the ends, 1 for the middle, and so on by halving.

    >>> levels([1, 2, 4, 8, 16])
    {1: 0, 16: 0, 4: 1, 2: 2, 8: 2}
    """
    ordered = sorted(set(lengths))
    found = {ordered[0]: 0, ordered[-1]: 0}
    gaps, level = [(0, len(ordered) - 1)], 0
    while gaps:
        level += 1
        finer = []
        for low, high in gaps:
            if high - low < 2:
                continue
            middle = (low + high) // 2
            found[ordered[middle]] = level
            finer += [(low, middle), (middle, high)]
        gaps = finer
    return found


# Operations


def mixer_specs(grid: Grid, architecture: Architecture) -> dict[str, MixerSpec]:
    """Each wanted mixer's dimensions in this model, with the first window asked for."""
    found = {mixer: architecture.spec_for(mixer) for mixer in grid.mixers}
    if grid.windows and "sliding_window" in found:
        found["sliding_window"] = replace(found["sliding_window"], window=grid.windows[0])
    return found


def mixer_ops(grid: Grid, specs: dict[str, MixerSpec]) -> list[Op]:
    """Each mixer's kernel; a windowed one at every window asked for."""
    found: list[Op] = []
    for spec in specs.values():
        windows = grid.windows if spec.window is not None else ()
        found += [MixerOp(replace(spec, window=w)) for w in windows] or [MixerOp(spec)]
    return found


def dense_ops(architecture: Architecture, specs: Iterable[MixerSpec]) -> list[DenseOp]:
    """Projections of the mixers and of the channel mixer, and the LM head; each shape once."""
    hidden = architecture.hidden_size
    gemms = [g for spec in specs for g in get_mixer(spec.mixer).projections(spec, hidden)]
    if architecture.mlp is not None:
        gemms += architecture.mlp.projections(hidden)
    if architecture.moe is not None:
        gemms += [*architecture.moe.shared(hidden), architecture.moe.router(hidden)]
    ops = [DenseOp.of(gemm) for gemm in gemms]
    return list(dict.fromkeys([*ops, lm_head(architecture)]))


def lm_head(architecture: Architecture) -> DenseOp:
    """It sees one token of a sequence, in a prefill too: measured in decode alone."""
    return DenseOp(architecture.hidden_size, architecture.vocab_size)


def expert_ops(architecture: Architecture) -> list[ExpertsOp]:
    moe = architecture.moe
    if moe is None:
        return []
    return [
        ExpertsOp(
            hidden_size=architecture.hidden_size,
            expert_intermediate_size=moe.expert_intermediate_size,
            num_experts=moe.num_experts,
            top_k=moe.top_k,
            gated=moe.gated,
        )
    ]


def conv_ops(specs: Iterable[MixerSpec]) -> list[ConvOp]:
    found = [(get_mixer(s.mixer).conv_channels(s), s.conv_size) for s in specs]
    return list(dict.fromkeys(ConvOp(channels, size) for channels, size in found if channels))


def stack_ops(
    grid: Grid, architecture: Architecture, specs: dict[str, MixerSpec]
) -> list[StackOp]:
    """Each ratio at each placement, for each mixer that is not full attention.

    The full layers are the model's own kind: MLA in a model whose full layers are latent. One
    pattern period, or two where the placement is not uniform: in one it is hardly another. With
    `mlp` every stack comes with and without the model's MLP behind each mixer.
    """
    own = (spec for spec in architecture.kinds.values() if get_mixer(spec.mixer).kind == "full")
    full = next(own, None) or architecture.spec_for("full_attention")
    full_letter = get_mixer(full.mixer).letter
    mlps: tuple[Mlp | None, ...] = (None,)
    if grid.mlp and architecture.mlp is not None:
        mlps = (None, architecture.mlp)
    found: list[StackOp] = []
    for mixer, spec in specs.items():
        if get_mixer(mixer).kind == "full" or mixer not in BLOCKS:
            continue
        letter = get_mixer(mixer).letter
        kinds = {full_letter: full, letter: spec}
        for ratio in grid.ratios:
            for placement in grid.placements:
                periods = 1 if placement == "uniform" else 2
                pattern = LayerPattern.from_ratio(
                    ratio,
                    periods * sum(parse_ratio(ratio)),
                    linear=letter,
                    full=full_letter,
                    placement=placement,
                ).letters
                if len(set(pattern)) == 1:  # one kind of layer has no placement
                    pattern = pattern[0]
                used = tuple((k, kinds[k]) for k in sorted(set(pattern)))
                bare = StackOp(pattern, used, architecture.hidden_size)
                found += [
                    replace(bare, mlp_size=mlp.intermediate_size, mlp_gated=mlp.gated)
                    if mlp
                    else bare
                    for mlp in mlps
                ]
    return list(dict.fromkeys(found))


# Workloads


def workloads(
    op: Op, phase: PlannedPhase, length: int, batches: Iterable[int], grid: Grid
) -> Iterator[Workload]:
    """This operation at one length of the grid, for each batch that makes sense there.

    A prefill of several sequences is measured while all its tokens together are no more than the
    longest length: beyond that its time is proportional.
    """
    stateless = isinstance(op, DenseOp | ExpertsOp)
    for batch in batches:
        if phase == "decode":
            cached = 0 if stateless else length
            yield Workload(
                op=op, batch_size=batch, new_tokens=1, cached_tokens=cached, dtype=grid.dtype
            )
        elif batch > 1 and batch * length > max(grid.lengths):
            continue
        elif phase == "segment":
            if length >= 2 * grid.segment_tokens and not stateless:
                yield Workload(
                    op=op,
                    batch_size=batch,
                    new_tokens=grid.segment_tokens,
                    cached_tokens=length - grid.segment_tokens,
                    dtype=grid.dtype,
                )
        else:
            yield Workload(
                op=op,
                batch_size=batch,
                new_tokens=length,
                dtype=grid.dtype,
                training=phase == "training",
            )


def depends_on_context(op: Op) -> bool:
    """Whether a decode step's cost grows with what is cached."""
    if isinstance(op, MixerOp):
        return get_mixer(op.spec.mixer).kind != "recurrent"
    if isinstance(op, StackOp):
        return any(get_mixer(s.mixer).kind != "recurrent" for s in op.layers)
    return False


def lengths_for(op: Op, phase: PlannedPhase, grid: Grid) -> list[int]:
    """All lengths; a decode step that does not depend on them only at the shortest and longest."""
    if phase != "decode" or depends_on_context(op):
        return list(grid.lengths)
    if isinstance(op, DenseOp | ExpertsOp):
        return [min(grid.lengths)]
    return sorted({min(grid.lengths), max(grid.lengths)})


# Providers and points


def chosen_providers(op: Op, grid: Grid, device: Device) -> list[Provider]:
    """By name where asked for, else every provider whose device and packages are here."""
    family = get_family(op.family)
    if not grid.providers:
        return family.available(device)
    return [p for p in family.providers if p.name in grid.providers]


def check_provider_names(grid: Grid) -> None:
    """Raises UnknownName for a provider that nothing wanted has."""
    around = ("dense", "experts", "short_convolution") if grid.dense else ()
    names = {p.name for family in (*grid.mixers, *around) for p in get_family(family).providers}
    for name in grid.providers:
        if name not in names:
            raise UnknownName("provider", name, names)


def stack_providers(workload: Workload, grid: Grid, device: Device) -> list[str]:
    """One choice: for each mixer its first provider that can run its part of the workload."""
    assert isinstance(workload.op, StackOp)
    found: dict[str, str] = {}
    for _, spec in workload.op.kinds:
        part = replace(workload, op=MixerOp(spec))
        options = chosen_providers(part.op, grid, device)
        able = [p.name for p in options if p.unsupported(part, device) is None]
        if not able:
            return []
        found[spec.mixer] = able[0]
    return [provider_name(workload.op, found)]


def cells_for(workload: Workload, grid: Grid, device: Device) -> tuple[Cell, ...]:
    """Modes and cache states worth their time for this workload; an explicit wish wins.

    On a CPU there are no graphs. Eager is timed where launches can matter, warm where the data
    could have stayed in the cache; stacks and the layers around a mixer only cold, as models run.
    """
    if device.kind == "cpu":
        modes: tuple[Mode, ...] = ("eager",)
    elif grid.modes:
        modes = grid.modes
    else:
        modes = ("graph", "eager") if launches_matter(workload) else ("graph",)
    caches = grid.caches
    if not caches:
        fits = workload.min_bytes <= WARM_WITHIN_CACHES * device.cache_bytes
        compared = isinstance(workload.op, MixerOp)
        caches = ("cold", "warm") if fits and compared else ("cold",)
    return tuple(Cell(mode, cache) for mode in modes for cache in caches)


def launches_matter(workload: Workload) -> bool:
    """Short calls; of the single-kernel dense layers only decode's."""
    tokens = workload.batch_size * workload.new_tokens
    if isinstance(workload.op, MixerOp | StackOp):
        return tokens <= EAGER_TOKENS
    return workload.new_tokens == 1


def jobs_for(workload: Workload, grid: Grid, device: Device, level: int) -> Iterator[PlannedJob]:
    if isinstance(workload.op, StackOp):
        names = stack_providers(workload, grid, device)
    else:
        names = [p.name for p in chosen_providers(workload.op, grid, device)]
    for name in names:
        _, provider = resolve(workload, name)
        if workload.phase not in provider.phases:
            continue
        reason = provider.unsupported(workload, device) or ""
        cells = cells_for(workload, grid, device)
        plain = PlannedJob(
            job=Job(workload=workload, provider=name),
            cells=cells[:1] if reason else cells,  # one row says it
            level=level,
            reason=reason,
            method="+".join(
                filter(
                    None,
                    (method_version(workload, device.kind), provider.versions.get(workload.phase)),
                )
            ),
        )
        yield plain
        yield from segmented(plain, provider, grid, device)
        if grid.preferred_only and not reason:
            return


def segmented(
    plain: PlannedJob, provider: Provider, grid: Grid, device: Device
) -> Iterator[PlannedJob]:
    """The same prefill in segments, for each size of the grid that splits it."""
    workload = plain.job.workload
    whole = isinstance(workload.op, MixerOp) and workload.cached_tokens == 0
    for size in grid.segments:
        if not whole or workload.training or workload.new_tokens < 2 * size:
            continue
        if provider.unsupported(segment_of(workload, size), device) is None:
            job = replace(plain.job, variant=variant_of(size))
            yield replace(plain, job=job, cells=plain.cells[:1], reason="")


def build(grid: Grid, device: Device, architectures: Iterable[Architecture]) -> list[PlannedJob]:
    """Every job of the grid, coarse first, each once; the long lengths last."""
    check_provider_names(grid)
    for mixer in grid.mixers:
        if mixer not in families():
            raise UnknownName("mixer with providers", mixer, families().keys() & MIXERS.keys())
    architectures = list(architectures)
    found = _build(grid, device, architectures)
    if grid.long_lengths:
        beyond = replace(
            grid,
            lengths=grid.long_lengths,
            long_lengths=(),
            batches=(1,),
            modes=("eager",) if device.kind == "cpu" else ("graph",),
            caches=("cold",),
            ratios=(),
            dense=False,
        )
        found += [replace(p, long=True) for p in _build(beyond, device, architectures)]
    return found


def _build(grid: Grid, device: Device, architectures: list[Architecture]) -> list[PlannedJob]:
    level = levels(grid.lengths)
    found: dict[Job, PlannedJob] = {}
    for architecture in architectures:
        specs = mixer_specs(grid, architecture)
        head = lm_head(architecture)
        for rank, ops in enumerate(operations(grid, architecture, specs)):
            for op in ops:
                for phase in phases_of(op, grid):
                    if op == head and phase != "decode":
                        continue
                    for length in lengths_for(op, phase, grid):
                        if rank == STACK_RANK and level[length] > STACK_LEVEL:
                            continue
                        batches = (1,) if rank == STACK_RANK else grid.batches
                        for workload in workloads(op, phase, length, batches, grid):
                            for planned in jobs_for(workload, grid, device, level[length]):
                                found.setdefault(planned.job, planned)
    return sorted(found.values(), key=_order)


STACK_RANK = 2
STACK_LEVEL = 1
"""Stacks are measured at the ends and the middle of the lengths: they check that layers add up,
and take as long as everything else together where every length has them."""


def operations(
    grid: Grid, architecture: Architecture, specs: dict[str, MixerSpec]
) -> tuple[list[Op], list[Op], list[Op]]:
    """Mixers; what stands around them; whole stacks."""
    around: list[Op] = []
    if grid.dense:
        around = [
            *dense_ops(architecture, specs.values()),
            *expert_ops(architecture),
            *conv_ops(specs.values()),
        ]
    return (
        mixer_ops(grid, specs) if grid.kernels else [],
        around,
        list(stack_ops(grid, architecture, specs)),
    )


def phases_of(op: Op, grid: Grid) -> tuple[PlannedPhase, ...]:
    """Only mixers are measured in segments and in training so far."""
    if isinstance(op, MixerOp):
        return grid.phases
    return tuple(p for p in grid.phases if p in ("prefill", "decode"))


def _order(planned: PlannedJob) -> tuple[int, int, int, int, int, str]:
    """Coarse before fine, mixers before what is built of them, short before long."""
    w = planned.job.workload
    rank = 2 if isinstance(w.op, StackOp) else 0 if isinstance(w.op, MixerOp) else 1
    return (planned.level, rank, w.context, w.batch_size, w.new_tokens, w.short())


def key_of(planned: PlannedJob, cell: Cell, environment_id: str) -> str:
    """The key under which the store holds this point."""
    job = planned.job
    return point_key(
        job.workload,
        provider=job.provider,
        variant=job.variant,
        mode=cell.mode,
        cache_state=cell.cache,
        method_version=planned.method,
        environment_id=environment_id,
    )


def unfinished(
    plan: Iterable[PlannedJob],
    finished: Set[str],
    environment_id: str,
    *,
    with_energy: Set[str] = frozenset(),
) -> list[PlannedJob]:
    """What of the plan is not among the finished keys; jobs for energy have keys of their own."""
    left = []
    for planned in plan:
        wanted = planned.energy and not planned.reason
        cells = tuple(
            cell
            for cell in planned.cells
            if key_of(planned, cell, environment_id)
            not in (with_energy if wanted and cell.has_energy else finished)
        )
        if cells:
            left.append(replace(planned, cells=cells))
    return left


def count_points(plan: Iterable[PlannedJob]) -> int:
    return sum(len(planned.cells) for planned in plan)


def groups(jobs: Iterable[PlannedJob]) -> list[list[PlannedJob]]:
    """Jobs of the same workload together, in the plan's order."""
    by_workload: dict[Workload, list[PlannedJob]] = {}
    for planned in jobs:
        by_workload.setdefault(planned.job.workload, []).append(planned)
    return list(by_workload.values())
