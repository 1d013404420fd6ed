"""What aiconfigurator's tables call things, and what that is here.

Providers are named framework, kernel, version: `vllm_fa3@0.24`. A kernel without an entry keeps
its own name, so that a newer table is read, only less prettily.
"""

from __future__ import annotations

import re

DTYPES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "fp8": "fp8",
    "fp8_block": "fp8",
}
"""Others (int4 weights, nvfp4, mxfp4) have no name here and are dropped."""

KERNELS = {
    # attention
    "vllm_flash_attn": "flash_attn",
    "vllm_flash_attn_fa2": "fa2",
    "vllm_flash_attn_fa3": "fa3",
    "vllm_flash_attn_fa4": "fa4",
    "vllm_flashinfer_fiprefill": "flashinfer",
    "vllm_flashinfer_fidecode": "flashinfer",
    "vllm_flashinfer_trtllmprefill": "flashinfer_trtllm",
    "vllm_flashinfer_trtllmdecode": "flashinfer_trtllm",
    "vllm_triton_attn": "triton",
    "flash_attention": "flash_attn",
    "torch_flow": "",
    "torch_flow_flashinfer": "flashinfer",
    "default": "",
    "trtllm": "",
    # recurrent mixers and their convolution
    "chunk_gated_delta_rule": "chunk",
    "chunk_gated_delta_rule_flashinfer": "flashinfer",
    "fused_recurrent_gated_delta_rule": "fused_recurrent",
    "fused_recurrent_gated_delta_rule_packed_decode": "fused_recurrent",
    "chunk_kda": "chunk",
    "flashkda_fwd": "flashkda",
    "fused_recurrent_kda": "fused_recurrent",
    "fused_recurrent_kda_packed_decode": "fused_recurrent",
    "fused_sigmoid_gating_delta_rule_update": "fused_gating",
    "causal_conv1d_fn": "causal_conv1d",
    "causal_conv1d_fn_qkv3": "causal_conv1d",
    "causal_conv1d_update": "causal_conv1d",
    # matrix products
    "torch.nn.functional.linear": "linear",
    "vllm_default": "linear",
    "sglang_torch_linear": "linear",
    "sglang": "linear",
    "sglang_sgl_kernel_fp8_scaled_mm": "sgl_kernel",
    "sglang_deepgemm_gemm_nt_f8f8bf16": "deepgemm",
    "cutlassfp8scaledmmlinearkernel": "cutlass",
    "cutlassfp8blockscaledmmkernel": "cutlass",
    "deepgemmfp8blockscaledmmkernel": "deepgemm",
    "flashinferfp8blockscaledmmkernel": "flashinfer",
    # experts
    "sglang_fused_moe_triton": "triton",
    "sglang_flashinfer_cutlass_moe": "flashinfer_cutlass",
    "sglang_flashinfer_trtllm_moe": "flashinfer_trtllm",
    "moe_torch_flow": "",
    "moe_torch_flow_cutlass": "cutlass",
    "moe_torch_flow_min_latency": "min_latency",
    "moe_torch_flow_nongated": "nongated",
    "vllm_fp8moe_triton_tritonexperts": "triton",
    "vllm_fp8moe_flashinfer_cutlass_flashinferexperts": "flashinfer_cutlass",
    "vllm_modeloptfp8moe_flashinfer_cutlass_flashinferexperts": "flashinfer_cutlass",
    "vllm_unquantizedfusedmoe_triton_tritonexperts": "triton",
    "vllm_unquantizedfusedmoe_flashinfer_cutlass_flashinferexperts": "flashinfer_cutlass",
    "vllm_unquantizedfusedmoe_flashinfer_trtllm_trtllmbf16experts": "flashinfer_trtllm",
    # all-reduce
    "vllm_custom_graph": "custom",
    "vllm_custom_eager": "custom",
    "sglang_customallreduce_graph": "custom",
    "sglang_customallreduce_eager": "custom",
}
"""Their `kernel_source`, in small letters, to the kernel's part of a provider's name."""


def provider_name(framework: str, kernel_source: str, version: str) -> str:
    """The provider of a row; builds and a trailing .0 are not part of the version's name.

    >>> provider_name("vllm", "vllm_flash_attn_fa3", "0.24.0")
    'vllm_fa3@0.24'
    """
    source = kernel_source.casefold()
    kernel = KERNELS.get(source)
    if kernel is None:
        kernel = re.sub(r"\W+", "_", source.removeprefix(f"{framework}_")).strip("_")
    label = f"{framework}_{kernel}" if kernel and kernel != framework else framework
    short = re.sub(r"^(\d+\.\d+)\.0$", r"\1", version.split("+")[0])
    return f"{label}@{short}"


def framework_of(provider: str) -> str:
    return re.split("[_@]", provider, maxsplit=1)[0]


def version_order(provider: str) -> tuple[int, ...]:
    """The numbers of a provider's version, in order: 1.3.0rc20 is newer than 1.3.0rc10."""
    return tuple(int(n) for n in re.findall(r"\d+", provider.partition("@")[2]))
