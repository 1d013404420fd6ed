"""Full softmax attention on silicon: torch's SDPA one backend at a time, varlen, flex."""

from __future__ import annotations

from functools import partial

from profiler.providers.softmax import (
    OWN_TRITON,
    equal_head_dims,
    flex_limits,
    make_inputs,
    prepare_flex,
    prepare_sdpa,
    prepare_varlen,
    probe,
    reference,
    sdpa_limits,
)
from profiler.providers.spec import NEEDS_TRITON, Family, Provider

HALF = ("bf16", "fp16")
ANY = ("fp32", "bf16", "fp16")


def _sdpa(name: str, backend: str, dtypes: tuple[str, ...]) -> Provider:
    return Provider(
        name=name,
        prepare=partial(prepare_sdpa, backend),
        devices=("cuda",),
        dtypes=dtypes,
        phases=("prefill", "decode", "training"),
        limits=partial(sdpa_limits, backend),
    )


FULL_ATTENTION = Family(
    name="full_attention",
    make_inputs=make_inputs,
    reference=reference,
    probe=probe,
    providers=(
        _sdpa("sdpa_cudnn", "cudnn", HALF),
        _sdpa("sdpa_flash", "flash", HALF),
        OWN_TRITON,
        Provider(
            name="varlen",
            prepare=prepare_varlen,
            devices=("cuda",),
            dtypes=HALF,
            phases=("prefill", "decode", "training"),
            limits=equal_head_dims,
        ),
        Provider(
            name="flex",
            prepare=prepare_flex,
            devices=("cuda",),
            dtypes=ANY,
            requires=(NEEDS_TRITON,),
            limits=flex_limits,
        ),
        _sdpa("sdpa_efficient", "efficient", ANY),
        _sdpa("sdpa_math", "math", ANY),
        Provider(
            name="sdpa_cpu",
            prepare=partial(prepare_sdpa, "flash"),
            devices=("cpu",),
            dtypes=("fp64", *ANY),
            phases=("prefill", "decode", "training"),
        ),
        Provider(
            name="sdpa_math_cpu",
            prepare=partial(prepare_sdpa, "math"),
            devices=("cpu",),
            dtypes=("fp64", *ANY),
            phases=("prefill", "decode", "training"),
        ),
    ),
)
