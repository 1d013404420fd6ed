"""How much device memory a workload takes, before it is tried.

Not `min_bytes`, which is what a call moves: a windowed decode step reads its window and the whole
cache lies there, and the layers of a stack use the same memory for what passes between them.
"""

from __future__ import annotations

from dataclasses import replace

from planner.mixers import MixerSpec, get_mixer
from planner.workload import DenseOp, ExpertsOp, MixerOp, StackOp, Workload, dtype_bytes

WORKSPACE = 3
"""Memory of a job being prepared over what it holds: workspace, and the gate in fp64."""

GATE_COPIES = 8
"""Of one sequence's keys and values, which the gate's reference reads in fp64 and reorders."""


def held_bytes(workload: Workload) -> float:
    """Bytes of inputs and output, and of gradients in training: it takes at least so much.

    Of a mixture of experts all weights lie there, however few of them the tokens choose.
    """
    op, B, T = workload.op, workload.batch_size, workload.new_tokens
    elem = dtype_bytes(workload.dtype)
    if isinstance(op, StackOp):
        weights = sum(p.in_features * p.out_features for p in op.parts() if isinstance(p, DenseOp))
        held = elem * (weights + 2.0 * B * T * op.hidden_size)
        if workload.cached_tokens:
            held += B * sum(
                float(get_mixer(spec.mixer).kv_cache_bytes(spec, workload.context, elem))
                + get_mixer(spec.mixer).state_bytes(spec, elem)
                for spec in op.layers
            )
    elif isinstance(op, ExpertsOp):
        rows = 2.0 * B * T * op.hidden_size
        held = elem * (rows + op.num_experts * op.expert_parameters)
    else:
        if isinstance(op, MixerOp):
            workload = replace(workload, op=MixerOp(whole(op.spec)))
        held = replace(workload, training=False).min_bytes
    return 2 * held if workload.training else held


def whole(spec: MixerSpec) -> MixerSpec:
    """What lies in memory for it: the whole cache, of which a window is a part."""
    if spec.window is None:
        return spec
    return replace(spec, mixer="full_attention", window=None)


def footprint(workload: Workload) -> float:
    """Bytes to set aside for a job while it is prepared beside others.

    A cache of keys and values is only read: a call needs no more memory for it, and the gate's
    reference takes one sequence. (MLA's is copied by some. SDPA's math backend expands keys,
    values and scores, up to 25 times this: if that does not fit, it is prepared again alone.)
    """
    op = workload.op
    if isinstance(op, StackOp):  # one layer at a time has its tensors between its parts
        return WORKSPACE * held_bytes(workload) + workload.min_bytes / len(op.layers)
    cached = 0.0
    if isinstance(op, MixerOp) and op.spec.mixer != "mla" and workload.cached_tokens:
        spec = whole(op.spec)
        cached = workload.batch_size * get_mixer(spec.mixer).kv_cache_bytes(
            spec, workload.cached_tokens, dtype_bytes(workload.dtype)
        )
    rest = WORKSPACE * (held_bytes(workload) - cached)
    return rest + cached * (1 + GATE_COPIES / workload.batch_size)
