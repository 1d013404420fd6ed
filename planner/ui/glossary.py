"""Glossary: what each control and term means, for the question marks beside them."""

from __future__ import annotations

GLOSSARY: dict[str, str] = {
    "use_case": "What the model is for. It sets lengths, concurrency, task weights, limits and "
    "the accuracy floor; every number can be changed below.",
    "for": "build: a new model, trained from scratch on this skeleton. deploy: a model that "
    "exists; the alternatives are conversions of it.",
    "model": "The skeleton: number of layers, widths, channel mixers, vocabulary. Its mixer "
    "layers are exchanged, the rest stays. Choose one of the catalog, or type the path of a "
    "config.json on this machine.",
    "hardware": "The device to plan for. Devices with measurements come first; the others are "
    "costed by the roofline of their datasheet, marked analytic.",
    "length": "Choose, or type any length: 3000, 96k, 1m. 1k is 1,024 tokens.",
    "concurrency": "Sequences decoded together. If fewer fit the memory, the batch is what fits.",
    "floor": "Accuracy to keep, in percent of full attention of the same recipe. A design passes "
    "when the evidence puts the probability of that at {level:g} or more.",
    "score_floor": "A score to reach on a benchmark itself, such as RULER>=85@128k: RULER, MRCR, "
    "HELMET, LongBench, LongBench V2 at a length, MMLU without. Answered from scores of models "
    "alike, your own first, or refused as not covered.",
    "ttft_ms": "Time to first token: the prefill of one prompt alone. Without a limit: none.",
    "tpot_ms": "Time per output token: one decode step of the whole batch. Without a limit: none.",
    "session_mib": "KV cache and state that one sequence holds. Without a limit: none.",
    "kv_growth": "Bytes that the next token adds to the KV cache at the end of the output; 0 asks "
    "for constant memory. Without a limit: none.",
    "weights": "How the weights are stored. Another dtype than the device computes in scales "
    "their traffic, which lowers the basis to scaled.",
    "kv": "How keys and values are stored. Recurrent state stays in fp32.",
    "price": "What a device costs an hour. list takes the cheapest on-demand row of the shipped "
    "price list for this device; type your own number instead.",
    "utilisation": "The share of paid time that serves requests. Idle devices are paid too.",
    "cache_hits": "The share of a prompt's tokens found in the prefix cache. Their prefill is "
    "saved, attention to them is not.",
    "engine": "Whose rules decide what memory is set aside: pages, padding, state slots, pools, "
    "windows kept long. ideal rounds nothing.",
    "mode": "graph replays a step's kernels at once. eager launches each from the host, which "
    "adds time wherever a kernel ends before the next one is launched.",
    "tp": "Devices that share every layer. All of them are paid.",
    "price_over_length": "An input price is the mean over a prompt of that length, an output "
    "price that of the tokens after it, at the batch that fits there.",
    "basis": "How a number came to be, from best to worst: measured on this device; interpolated "
    "between measured points; scaled from another shape or dtype; extrapolated beyond the last "
    "point; analytic, from the datasheet's roofline. The worst basis in a sum is the sum's.",
    "ratio": "linear:full, layers of the linear mixer to layers of full attention. 1:0 is pure "
    "linear, 0:1 pure full attention.",
    "mixer": "The token mixer of a layer: attention or what replaces it.",
    "provider": "One implementation of a mixer, such as a library's kernel. Never substituted.",
    "phase": "prefill: many new tokens at once, compute-bound. decode: one new token per step, "
    "bandwidth-bound.",
    "outcome": "ok, out_of_memory and unsupported are results; mismatch, timeout and error are "
    "faults; skipped was left out on purpose. Each is a row with its reason.",
    "roofline": "No kernel can be faster: its arithmetic over the peak or its bytes over the "
    "bandwidth, whichever is longer.",
    "retention": "Accuracy divided by that of a full-attention control of the same recipe.",
    "tier": "How the number was read: the paper itself, its text, a transcription, a secondary "
    "note, a model card; imported is your own.",
    "effective": "The longest length up to which RULER's mean stays at 85.6 or more, its own "
    "threshold: what Llama-2-7B has at 4k. 0 where no length reaches it.",
    "use": "evaluate: scored against predictions; fit: used in the fit only; show: shown, not "
    "used, for the reason given.",
}
