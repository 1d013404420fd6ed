"""Every provider that runs on a CPU against its reference: one contract for all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from planner.errors import UnknownName, UsageError
from planner.mixers import MixerSpec, get_mixer
from planner.workload import ConvOp, DenseOp, ExpertsOp, MixerOp, Op, Workload
from profiler import gate
from profiler.device import Device
from profiler.providers import families, get_family
from profiler.providers.gated_deltanet import fla_limits
from profiler.providers.recurrence import RecurrentInputs, chunked, reference
from profiler.providers.softmax import AttentionInputs, math_bytes, sdpa_limits, visible
from profiler.providers.spec import Family, Output, Provider, Requirement
from profiler.segments import bind_segments, segment_size

GQA = MixerSpec(
    mixer="full_attention",
    num_q_heads=4,
    num_k_heads=2,
    num_v_heads=2,
    k_head_dim=16,
    v_head_dim=16,
)
RAGGED = (63, 200, 1000)
TOLERANCE = 1e-4  # relative RMS, fp32 against fp64


def op_of(family: str) -> Op:
    if family == "dense":
        return DenseOp(96, 40)
    if family == "short_convolution":
        return ConvOp(24, 4)
    if family == "experts":
        return ExpertsOp(48, 32, num_experts=7, top_k=3)
    spec = get_mixer(family).matched(GQA, 64)
    return MixerOp(replace(spec, window=100) if family == "sliding_window" else spec)


CPU_PROVIDERS = [
    pytest.param(family, provider, id=f"{family.name}-{provider.name}")
    for family in families().values()
    for provider in family.providers
    if "cpu" in provider.devices
]
RECURRENT = ("linear_attention", "lightning", "gated_deltanet", "kda", "mamba2")


def workload(family: Family, new: int, cached: int = 0, batch: int = 2) -> Workload:
    return Workload(
        op=op_of(family.name), batch_size=batch, new_tokens=new, cached_tokens=cached, dtype="fp32"
    )


def run(provider: Provider, inputs: object) -> Output:
    return gate.bind(provider, inputs, training=False)()


@pytest.mark.parametrize(("family", "provider"), CPU_PROVIDERS)
class TestProvider:
    """What every provider promises."""

    @pytest.mark.parametrize("tokens", RAGGED)
    def test_prefill_agrees_with_the_reference_in_fp64(
        self, family: Family, provider: Provider, tokens: int, cpu: Device
    ) -> None:
        self.check(family, provider, workload(family, tokens), cpu)

    def test_segment_agrees(self, family: Family, provider: Provider, cpu: Device) -> None:
        self.check(family, provider, workload(family, 77, 123), cpu)

    def test_decode_agrees(self, family: Family, provider: Provider, cpu: Device) -> None:
        self.check(family, provider, workload(family, 1, 199), cpu)

    def test_training_agrees(self, family: Family, provider: Provider, cpu: Device) -> None:
        w = replace(workload(family, 63), training=True)
        if provider.unsupported(w, cpu):
            pytest.skip(str(provider.unsupported(w, cpu)))
        inputs = family.make_inputs(w, cpu.torch, 3)
        output = gate.bind(provider, inputs, training=True)()
        verdict = gate.compare(family, inputs, output, training=True)
        assert len(output.grads) == len(inputs.tensors())
        assert verdict.error <= TOLERANCE, verdict.reason()

    def test_a_part_of_a_long_call_agrees(
        self, family: Family, provider: Provider, cpu: Device
    ) -> None:
        w = workload(family, 700)
        if provider.unsupported(w, cpu):
            pytest.skip(str(provider.unsupported(w, cpu)))
        inputs = family.make_inputs(w, cpu.torch, 5)
        verdict = gate.check_part(family, inputs, run(provider, inputs))
        assert verdict is not None and verdict.error <= TOLERANCE

    @staticmethod
    def check(family: Family, provider: Provider, w: Workload, cpu: Device) -> None:
        if provider.unsupported(w, cpu):
            pytest.skip(str(provider.unsupported(w, cpu)))
        inputs = family.make_inputs(w, cpu.torch, 1)
        verdict = gate.compare(family, inputs, run(provider, inputs))
        assert verdict.error <= TOLERANCE, verdict.reason()


@pytest.mark.parametrize("window", [1, 2, 63, 64, 65, 200, 201, 5000])
@pytest.mark.parametrize("cached", [0, 90])
def test_chunked_window_is_exact_at_its_edges(window: int, cached: int, cpu: Device) -> None:
    """W = 1, W = T, W > T and the block edges; a window past the context is full attention."""
    spec = replace(get_mixer("sliding_window").matched(GQA, 64), window=window)
    w = Workload(
        op=MixerOp(spec), batch_size=2, new_tokens=200, cached_tokens=cached, dtype="fp32"
    )
    family = get_family("sliding_window")
    inputs = family.make_inputs(w, cpu.torch, 1)
    output = run(family.provider("chunked"), inputs)
    assert gate.compare(family, inputs, output).error <= TOLERANCE
    if window >= 200 + cached:
        full = get_family("full_attention").reference(replace(inputs, window=None))
        assert gate.relative_rms(output.o, full.o) <= TOLERANCE


@pytest.mark.parametrize("window", [1, 3, 100])
def test_windowed_decode_reads_the_last_window(window: int, cpu: Device) -> None:
    spec = replace(get_mixer("sliding_window").matched(GQA, 64), window=window)
    w = Workload(op=MixerOp(spec), batch_size=2, new_tokens=1, cached_tokens=50, dtype="fp32")
    family = get_family("sliding_window")
    inputs = family.make_inputs(w, cpu.torch, 1)
    output = run(family.provider("sdpa_cpu"), inputs)
    assert gate.compare(family, inputs, output).error <= TOLERANCE


def test_the_mask_is_the_windows_definition() -> None:
    """The query at position p sees keys p - W + 1 to p: W of them, itself included."""
    q = torch.zeros(1, 5, 1, 1)
    k = torch.zeros(1, 8, 1, 1)
    seen = visible(AttentionInputs(q=q, k=k, v=k, scale=1.0, window=3))
    for row, p in enumerate(range(3, 8)):
        assert seen[row].nonzero().flatten().tolist() == [p - 2, p - 1, p]


@pytest.mark.parametrize("name", RECURRENT)
def test_prefill_is_segments_is_steps(name: str, cpu: Device) -> None:
    """prefill(T) = prefill(T1) then the segment (T - T1, T1) from its state = T decode steps."""
    family = get_family(name)
    w = workload(family, 150)
    inputs: RecurrentInputs = family.make_inputs(w, cpu.torch, 2)
    everything = slice(None)
    whole = run(family.provider("chunked"), inputs)
    first = run(family.provider("chunked"), inputs.part(everything, 0, 97, None))
    second = run(family.provider("chunked"), inputs.part(everything, 97, 150, first.state))
    joined = torch.cat([first.o, second.o], dim=1)
    state, steps = None, []
    for t in range(150):
        step = run(family.provider("step"), inputs.part(everything, t, t + 1, state))
        state = step.state
        steps.append(step.o)
    for other, left in ((joined, second.state), (torch.cat(steps, dim=1), state)):
        assert gate.relative_rms(other, whole.o) <= TOLERANCE
        assert left is not None and whole.state is not None
        assert gate.relative_rms(left, whole.state) <= TOLERANCE


@pytest.mark.parametrize("name", ["full_attention", "sliding_window"])
def test_attention_prefill_is_segments_is_steps(name: str, cpu: Device) -> None:
    family = get_family(name)
    w = workload(family, 150)
    inputs: AttentionInputs = family.make_inputs(w, cpu.torch, 2)
    whole = family.reference(inputs).o
    prefill = "chunked" if name == "sliding_window" else "sdpa_cpu"

    def after(start: int, stop: int, provider: str) -> torch.Tensor:
        part = replace(
            inputs,
            q=inputs.q[:, start:stop],
            k=inputs.k[:, :stop],
            v=inputs.v[:, :stop],
        )
        return run(family.provider(provider), part).o

    joined = torch.cat([after(0, 97, prefill), after(97, 150, prefill)], dim=1)
    steps = torch.cat([after(t, t + 1, "sdpa_cpu") for t in range(150)], dim=1)
    assert gate.relative_rms(joined, whole) <= TOLERANCE
    assert gate.relative_rms(steps, whole) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "provider"),
    [(name, "chunked") for name in (*RECURRENT, "sliding_window")]
    + [("full_attention", "sdpa_cpu")],
)
@pytest.mark.parametrize("size", [64, 97, 1000])
def test_a_prefill_in_segments_is_the_prefill(
    name: str, provider: str, size: int, cpu: Device
) -> None:
    family = get_family(name)
    inputs = family.make_inputs(workload(family, 250), cpu.torch, 2)
    found = bind_segments(family.provider(provider), inputs, size, whole_output=True)()
    assert gate.compare(family, inputs, found).error <= TOLERANCE
    last = bind_segments(family.provider(provider), inputs, size, whole_output=False)().o
    assert torch.equal(last, found.o[:, -last.shape[1] :])


@pytest.mark.parametrize("variant", ["segments=0", "segments", "pieces=4"])
def test_an_unknown_variant_is_refused(variant: str) -> None:
    with pytest.raises(UsageError, match="segments=8192"):
        segment_size(variant)


@pytest.mark.parametrize("chunk", [1, 16, 64, 256])
def test_the_chunk_size_changes_nothing(chunk: int, cpu: Device) -> None:
    family = get_family("gated_deltanet")
    inputs = family.make_inputs(workload(family, 130), cpu.torch, 4).to(torch.float64)
    assert gate.relative_rms(chunked(inputs, chunk).o, reference(inputs).o) < 1e-12


def test_delta_rule_with_orthonormal_keys_is_linear_attention(cpu: Device) -> None:
    """With g = 0, β = 1 and keys that never repeat a direction nothing is overwritten."""
    k = torch.eye(8)[None, :, None, :]
    q, v = torch.randn(1, 8, 1, 8), torch.randn(1, 8, 1, 5)
    plain = RecurrentInputs(q=q, k=k, v=v, scale=1.0)
    delta = replace(plain, beta=torch.ones(1, 8, 1), log_decay=torch.zeros(1, 8, 1))
    assert gate.relative_rms(reference(delta).o, reference(plain).o) < 1e-6


def test_grouped_heads_are_repeated_heads(cpu: Device) -> None:
    """Mamba-2's groups: each serves a block of consecutive heads."""
    family = get_family("mamba2")
    inputs = family.make_inputs(workload(family, 70), cpu.torch, 4)
    heads = inputs.v.shape[2]
    spread = replace(
        inputs,
        q=inputs.q.repeat_interleave(heads // inputs.q.shape[2], dim=2),
        k=inputs.k.repeat_interleave(heads // inputs.k.shape[2], dim=2),
    )
    assert gate.relative_rms(chunked(inputs, 64).o, chunked(spread, 64).o) < 1e-6


def test_decays_are_realistic(cpu: Device) -> None:
    """Log decays are negative, and mostly keep a state for tens of tokens, as trained ones do."""
    family = get_family("gated_deltanet")
    g = family.make_inputs(workload(family, 500), cpu.torch, 0).log_decay
    assert (g <= 0).all()
    assert 0.5 < g.exp().median() < 1


def test_a_provider_says_why_it_cannot(cpu: Device) -> None:
    family = get_family("full_attention")
    w = workload(family, 64)
    assert "not on cpu" in str(family.provider("sdpa_flash").unsupported(w, cpu))
    chunk = get_family("linear_attention").provider("chunked")
    decode = workload(get_family("linear_attention"), 1, 10)
    assert "not decode" in str(chunk.unsupported(decode, cpu))
    assert "not bf16" in str(chunk.unsupported(replace(w, dtype="bf16"), cpu))


def test_the_math_backend_is_not_tried_where_its_scores_would_fill_the_gpu(cpu: Device) -> None:
    """16k tokens, 32 heads: 32·16384² scores of 4 + 4 + 2 bytes are 80 GiB, and the repeated keys
    and values 32·16384·256·6 bytes, 0.75 GiB."""
    spec = replace(GQA, num_q_heads=32, k_head_dim=128, v_head_dim=128)
    w = Workload(op=MixerOp(spec), batch_size=1, new_tokens=16384, dtype="bf16")
    assert math_bytes(w) == (80 + 0.75) * 2**30
    gpu = replace(cpu, kind="cuda", memory_bytes=80 << 30, capability=(9, 0))
    said = sdpa_limits("math", w, gpu)
    assert said is not None and "80.75 GiB" in said and "over 20.00 GiB" in said
    assert sdpa_limits("math", replace(w, new_tokens=4096), gpu) is None
    assert sdpa_limits("math", w, cpu) is None


@pytest.mark.parametrize("name", ["sdpa_math_cpu", "sdpa_flash_padded_cpu"])
def test_a_first_token_alone_is_expanded_in_latent_attention(name: str) -> None:
    """Nothing is cached, so it is a prefill of one token and has no shared latent to attend in."""
    spec = MixerSpec(
        mixer="mla", num_q_heads=2, num_k_heads=2, num_v_heads=2, k_head_dim=16, v_head_dim=16,
        kv_lora_rank=32, rope_head_dim=8,
    )  # fmt: skip
    family = get_family("mla")
    w = Workload(op=MixerOp(spec), batch_size=2, new_tokens=1, dtype="fp32")
    inputs = family.make_inputs(w, torch.device("cpu"), 0)
    output = gate.bind(family.provider(name), inputs, training=False)()
    assert gate.compare(family, inputs, output).passed


def test_gated_backward_is_refused_where_triton_miscompiles_it(
    cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    hopper = replace(cpu, kind="cuda", capability=(9, 0))
    w = replace(workload(get_family("gated_deltanet"), 64), training=True)
    for version, refused in (("3.3.1", False), ("3.6.0", True), ("3.7.1", False)):
        monkeypatch.setattr(
            "profiler.providers.gated_deltanet.distribution_version", lambda name, v=version: v
        )
        assert (fla_limits(w, hopper) is not None) == refused


def test_a_missing_or_old_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Requirement(module="no_such_module", distribution="no-such", get="pip install it")
    assert absent.missing() == "needs no-such: pip install it"
    old = Requirement(module="json", distribution="x", get="pip install -U x", minimum=(0, 6, 0))
    monkeypatch.setattr("profiler.providers.spec.distribution_version", lambda name: "0.5.2.post1")
    assert old.missing() == "needs x >= 0.6.0, found 0.5.2.post1: pip install -U x"


def test_unknown_names_list_what_exists() -> None:
    with pytest.raises(UnknownName, match="sdpa_flash"):
        get_family("full_attention").provider("flash")
    with pytest.raises(UnknownName, match="gated_deltanet"):
        get_family("gated_delta_net")


def test_copies_of_a_windowed_step_share_a_cache_and_read_apart() -> None:
    """The same output, none of the same memory, and little more of it than one cache; of several
    sequences, or without a window, the whole cache is copied."""
    family = get_family("sliding_window")
    spec = replace(get_mixer("sliding_window").matched(GQA, 64), window=16)

    def inputs_of(batch: int, window: int) -> AttentionInputs:
        op = MixerOp(replace(spec, window=window))
        w = Workload(op=op, batch_size=batch, new_tokens=1, cached_tokens=999, dtype="fp32")
        made = family.make_inputs(w, torch.device("cpu"), 0)
        assert isinstance(made, AttentionInputs)
        return made

    for batch in (1, 3):
        inputs = inputs_of(batch, 16)
        copies = inputs.copies(5)
        assert torch.equal(copies[0].k, inputs.k) and torch.equal(copies[0].v, inputs.v)
        read = set()
        for copied in copies:
            assert copied.k.shape == inputs.k.shape and copied.k.is_contiguous()
            assert copied.v.shape == inputs.v.shape and copied.v.is_contiguous()
            step = copied.k[0, 0].numel() * copied.k.element_size()
            at = copied.k.data_ptr()
            ends = [at + (b + 1) * len(copied.k[0]) * step for b in range(batch)]
            read |= {end - (i + 1) * step for end in ends for i in range(16)}
        assert len(read) == 5 * 16 * batch, "no two copies read the same key"
        held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in (
            t for copied in copies for t in (copied.k, copied.v)
        )}  # fmt: skip
        assert sum(held.values()) < 1.1 * inputs.nbytes
        assert sum(held.values()) <= inputs.copies_bytes(5) < 1.2 * inputs.nbytes
    for whole, n in ((inputs_of(2, 16), 63), (inputs_of(2, 400), 3), (inputs_of(1, 2000), 3)):
        assert whole.copies_bytes(n) == n * whole.nbytes
        assert len({copied.k.untyped_storage().data_ptr() for copied in whole.copies(n)}) == n


def reference_of(family: Family, inputs: AttentionInputs) -> torch.Tensor:
    found: torch.Tensor = family.reference(inputs).o
    return found
