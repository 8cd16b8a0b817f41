"""Where an adapter stands in each architecture: the modules of the published methods, by name. No torch.

Names are ends of module names, as in peft: `down_proj` is every module of this name, `mlp.c_proj` the one of an MLP.
"""

from __future__ import annotations

INPUT, OUTPUT, PARALLEL = "input", "output", "parallel"
WIRINGS = (INPUT, OUTPUT, PARALLEL)
"""How a bottleneck stands to its layer: before it, behind it, or beside it (privlm.adapters.bottleneck)."""

_BLOCKS: dict[str, tuple[str, str, str]] = {
    "llama mistral qwen2 qwen3 gemma gemma2 stablelm": ("q_proj k_proj v_proj", "gate_proj up_proj", "down_proj"),
    "bloom gpt_neox falcon": ("query_key_value", "dense_h_to_4h", "dense_4h_to_h"),
    "gptj": ("q_proj k_proj v_proj", "fc_in", "fc_out"),
    "opt phi": ("q_proj k_proj v_proj", "fc1", "fc2"),
    "gpt_neo": ("q_proj k_proj v_proj", "c_fc", "c_proj"),
    "gpt2": ("c_attn", "mlp.c_fc", "mlp.c_proj"),  # c_proj alone is one of attention, too
    "phi3": ("qkv_proj", "gate_up_proj", "down_proj"),
}
"""Architectures -> the layers of a block that give queries, keys and values, that enter its MLP, and that leave it."""

_PARTS = {
    architecture: tuple(modules.split() for modules in parts)
    for architectures, parts in _BLOCKS.items()
    for architecture in architectures.split()
}

ADAPTER_H = {
    architecture: {**dict.fromkeys(entering, INPUT), **dict.fromkeys(leaving, OUTPUT)}
    for architecture, (_, entering, leaving) in _PARTS.items()
}
"""Before the MLP's first layers and behind its last: after Houlsby et al., arXiv 1902.00751, as LLM-Adapters (Hu et
al., EMNLP 2023, arXiv 2304.01933) has it."""

ADAPTER_P = {architecture: dict.fromkeys(leaving, OUTPUT) for architecture, (_, _, leaving) in _PARTS.items()}
"""Behind the MLP alone: after Pfeiffer et al., arXiv 2005.00052."""

PARALLEL_ATTENTION = {
    architecture: dict.fromkeys(attention, PARALLEL) for architecture, (attention, _, _) in _PARTS.items()
}
"""Beside the projections to queries, keys and values: the tables of LLM-Adapters' first two versions. Its EMNLP version
finds a better place beside the MLP (`up_proj`, `down_proj` of LLaMA), which a user names by the targets."""

PLACEMENTS: dict[str, dict[str, dict[str, str]]] = {
    "adapter_h": ADAPTER_H,
    "adapter_p": ADAPTER_P,
    "parallel": PARALLEL_ATTENTION,
    "scaled_parallel": PARALLEL_ATTENTION,
}
"""Method -> architecture -> target -> wiring. `scaled_parallel` learns the scale of its branch (He et al., ICLR 2022,
arXiv 2110.04366)."""

ONE_WIRING = {"adapter_p": OUTPUT, "parallel": PARALLEL, "scaled_parallel": PARALLEL}
"""Methods whose targets all have one wiring; those of the others must be given with theirs."""

LORA = {
    architecture: modules.split()
    for modules, architectures in {
        "query value": "bert roberta xlm-roberta camembert electra albert xlm-roberta-xl roberta-prelayernorm",
        "q_lin v_lin": "distilbert",
        "q v": "mpnet t5 mt5",
        "Wqkv": "modernbert",
        "query_proj value_proj": "deberta-v2",
        "in_proj": "deberta",
        "q_proj v_proj": "llama mistral qwen2 qwen3 gemma gemma2 opt phi gptj gpt_neo stablelm starcoder2",
        "qkv_proj": "phi3",
        "to_q to_k to_v to_out.0": "UNet2DConditionModel",  # all of attention, as in training scripts of diffusers
        "q_proj k_proj v_proj out_proj": "clip_text_model",
        "c_attn": "gpt2 gpt_bigcode",
        "query_key_value": "gpt_neox bloom falcon",
    }.items()
    for architecture in architectures.split()
}
"""Architecture -> modules adapted by default: the two projections of Hu et al., arXiv 2106.09685, section 4.2, or the
layer that holds them where queries, keys and values are one."""

LORA_EMNLP = {
    architecture: [*attention, entering[-1], *leaving]
    for architecture, (attention, entering, leaving) in _PARTS.items()
}
"""Queries, keys, values, and the MLP's layers up and down: LLM-Adapters' EMNLP version."""

FUSED_QKV = {"gpt2": "c_attn", "bloom": "query_key_value", "gpt_neox": "query_key_value"}
"""Architecture -> the layer whose outputs are queries, keys and values at once, a third each."""

_IA3: dict[str, tuple[str, str]] = {
    "bert roberta xlm-roberta camembert electra": ("key value", "output.dense"),  # attention's output, too, as in peft
    "distilbert": ("k_lin v_lin", "lin2"),
    "mpnet": ("attn.k attn.v", "output.dense"),
    "deberta-v2": ("key_proj value_proj", "output.dense"),
    "modernbert": ("Wqkv", "mlp.Wo"),
    "t5": ("k v", "wo"),
    **{architectures: (attention.removeprefix("q_proj "), leaving)
       for architectures, (attention, _, leaving) in _BLOCKS.items()},
}  # fmt: skip

IA3 = {
    architecture: (scaled.split(), feedforward.split())
    for architectures, (scaled, feedforward) in _IA3.items()
    for architecture in architectures.split()
}
"""Architecture -> layers whose outputs are scaled (keys and values, or what holds them) and layers whose inputs are
(the last of the MLP): Liu et al., arXiv 2205.05638, section 3.3."""
