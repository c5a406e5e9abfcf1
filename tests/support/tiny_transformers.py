"""Tiny models of transformers with random weights, by the name of their architecture."""

from __future__ import annotations

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

# Go through the attention interface.
_WORKS = (
    "afmoe albert apertus arcee bart bert bert-generation biogpt bitnet blenderbot camembert clip_text_model "
    "codegen cohere cohere2 ctrl data2vec-text diffllama distilbert doge electra ernie ernie4_5 eurobert exaone4 "
    "falcon_h1 flex_olmo gemma gemma2 gemma3_text glm glm4 gpt2 gpt_bigcode gpt_neox gptj granite granitemoe "
    "helium hunyuan_v1_dense lfm2 llama llama4_text m2m_100 marian mbart ministral mistral mixtral modernbert mt5 "
    "nemotron nomic_bert olmo olmo2 olmo3 olmoe opt pegasus persimmon phi phi3 plbart qwen2 qwen2_moe qwen3 "
    "qwen3_moe roberta seed_oss smollm3 stablelm starcoder2 t5 umt5 vaultgemma xlm-roberta "
)
WORKS = _WORKS.split()

# Make their mask through the interface and give it to attention code of their own, which misreads it.
_REFUSED = (
    "big_bird bloom canine convbert gpt_neox_japanese ibert led longformer megatron-bert mpnet mvp nllb-moe "
    "nystromformer pegasus_x rembert roformer squeezebert tapas visual_bert xglm "
)
REFUSED = _REFUSED.split()

# Attention with sinks.
SINKS = ("gpt_oss", "mimo_v2_flash")

# Look their attention class up in a table of names: KeyError, before any code of ours runs.
TABLES = ("bark", "falcon", "git", "gpt_neo", "sam")

_SIZES = {
    "vocab_size": 50, "max_position_embeddings": 64, "n_positions": 64, "hidden_size": 32, "n_embd": 32, "d_model": 32,
    "dim": 32, "embedding_size": 32, "word_embed_proj_dim": 32, "intermediate_size": 48, "n_inner": 48, "d_ff": 48,
    "hidden_dim": 48, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "ffn_dim": 48, "num_hidden_layers": 2, "n_layer": 2,
    "num_layers": 2, "num_decoder_layers": 2, "encoder_layers": 2, "decoder_layers": 2, "n_layers": 2,
    "num_attention_heads": 4, "num_heads": 4, "n_head": 4, "n_heads": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "d_kv": 8, "rotary_dim": 4, "num_experts": 4,
    "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "attention_window": 4, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip


_SPECIAL = {"gpt_neo": {"attention_types": [[["global", "local"], 1]]}}


def make(architecture: str, implementation: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    kind = CONFIG_MAPPING[architecture]
    defaults = kind()
    sizes = {
        name: size
        for name, size in _SIZES.items()
        if hasattr(defaults, name) and not isinstance(getattr(defaults, name), list | tuple | dict)
    } | _SPECIAL.get(architecture, {})
    if architecture == "falcon":  # derived from the others there
        del sizes["head_dim"]
    torch.manual_seed(0)
    config = kind(**sizes)
    config._experts_implementation = "eager"  # the other ones have no float64
    return transformers.AutoModel.from_config(config, attn_implementation=implementation).to(dtype).eval()


def outputs(model: torch.nn.Module) -> torch.Tensor:
    """Of two sequences of nine tokens, the last three of the second padding: what is no padding, (15, width)."""
    tokens = torch.randint(3, 50, (2, 9), generator=torch.Generator().manual_seed(1)).to(model.device)
    present = torch.ones(2, 9, dtype=torch.long, device=model.device)
    present[1, 6:] = 0
    inputs = {"input_ids": tokens, "attention_mask": present}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens
    return model(**inputs)[0][present.bool()]
