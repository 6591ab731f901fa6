"""Every family's real configuration, narrower and with fewer layers, with a tokenizer that was published: what transformers
makes models of random weights from (make_model of test_convert.py)."""

from functools import partial

from openai_vocabularies import tokenizer_json
from published_configs import SMALL_GPT_OSS, SMALL_QWEN3_NEXT, SMALL_QWEN35, SMALL_QWEN35_MOE, qwen35_pre_tokenizer

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 512}
# Short enough that 64 positions see every part of the scaling.
LLAMA3_SCALING = {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 64,
                  "rope_type": "llama3"}
# Of a model of another family that gets SmolLM2's tokenizer: a third of Qwen's tokens, which its other models have.
SMOLLM2_TOKENS = {"vocab_size": 49152, "bos_token_id": 0, "eos_token_id": 0}


# As Phi-3-mini's: one token that was there already, one that is not special although it looks so.
PHI3_ADDED = {
    "2": {"content": "</s>", "special": False}, "32000": {"content": "<|endoftext|>", "special": True},
    "32001": {"content": "<|assistant|>", "special": True}, "32002": {"content": "<|step|>", "special": False},
}


def tokenizer_files(name):
    """{file of a model folder: file of ../shared/data/hf, what it holds, what makes that, or such a file and what is otherwise
    in it}."""
    return {
        "smollm2": {"tokenizer.json": "SmolLM2-135M/tokenizer.derived.json"},
        # In a model whose family has a class of its own.
        "smollm2 fast": {
            "tokenizer.json": "SmolLM2-135M/tokenizer.derived.json",
            "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer"},
        },
        "mistral": {"tokenizer.model": "Mistral-7B-Instruct-v0.2/tokenizer.model"},
        "mistral json": {file: f"Mistral-7B-Instruct-v0.3/{file}" for file in ("tokenizer.json", "tokenizer_config.json")},
        "qwen": {
            "tokenizer.json": "Qwen3-4B/tokenizer.derived.json", "tokenizer_config.json": "Qwen3-4B/tokenizer_config.json",
        },
        # Gemma's way with spaces: no one is put before the text.
        "gemma json": {
            "tokenizer.json": (
                "Mistral-7B-Instruct-v0.3/tokenizer.json",
                {"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
                 "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}},
            ),
            "tokenizer_config.json": "Mistral-7B-Instruct-v0.3/tokenizer_config.json",
        },
        "phi3": {
            "tokenizer.model": "Mistral-7B-Instruct-v0.2/tokenizer.model",
            "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": PHI3_ADDED},
        },
        "phi4": {
            "tokenizer.json": "SmolLM2-135M/tokenizer.derived.json", "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer"},
        },
        "qwen35": {
            "tokenizer.json": ("Qwen3-4B/tokenizer.derived.json", {"pre_tokenizer": qwen35_pre_tokenizer()}),
            "tokenizer_config.json": "Qwen3-4B/tokenizer_config.json",
        },
        "o200k": {
            "tokenizer.json": partial(tokenizer_json, "o200k_base"),
            "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|startoftext|>",
                                      "eos_token": "<|return|>", "pad_token": "<|endoftext|>"},
        },
        "cl100k": {
            "tokenizer.json": partial(tokenizer_json, "cl100k_base"),
            "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>",
                                      "eos_token": "<|endoftext|>"},
        },
        "qwen merges": {file: f"Qwen3-4B/{file}" for file in ("vocab.json", "merges.txt", "tokenizer_config.json")},
    }[name]


# name: (configuration, tokenizer, changes to the configuration, dtype, shard size)
MODELS = {
    "llama": ("SmolLM2-135M", "smollm2", {"head_dim": 16}, "float32", "50GB"),
    "llama3": (
        "Llama-3.2-1B", "smollm2", {**SMOLLM2_TOKENS, "rope_scaling": LLAMA3_SCALING, "head_dim": 32}, "bfloat16", "50GB",
    ),
    "llama with biases": (
        "Llama-3.2-1B", "smollm2",
        {**SMOLLM2_TOKENS, "rope_scaling": {"type": "linear", "factor": 4.0}, "head_dim": None, "attention_bias": True,
         "mlp_bias": True, "tie_word_embeddings": False},
        "float32", "4MB",
    ),
    "mistral": (
        "Mistral-7B-Instruct-v0.3", "mistral",
        {"vocab_size": 32000, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
        "float16", "50GB",
    ),
    "qwen2": ("Qwen2.5-7B-Instruct", "qwen", {}, "bfloat16", "10MB"),
    "qwen3": ("Qwen3-4B", "qwen", {"head_dim": 32}, "float32", "50GB"),
    # A layer's experts in several files.
    "mixtral": ("Mixtral-8x7B-v0.1", "mistral", {}, "bfloat16", "200KB"),
    "qwen3moe": (
        "Qwen3-30B-A3B", "smollm2 fast",
        {**SMOLLM2_TOKENS, "head_dim": 32, "moe_intermediate_size": 64, "num_experts": 12, "num_experts_per_tok": 4}, "float32", "50GB",
    ),
    # Seven layers, of which one has no window; half of the 64 positions lie beyond a window's end.
    "gemma3": (
        "gemma-3-270m-it", "mistral",
        {"num_hidden_layers": 7, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 32, "vocab_size": 32000,
         "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
         "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        "bfloat16", "50GB",
    ),
    # Five layers, of which the fourth turns no heads.
    "smollm3": (
        "SmolLM3-3B", "smollm2",
        {**SMOLLM2_TOKENS, "num_hidden_layers": 5, "layer_types": ["full_attention"] * 5, "pad_token_id": 0,
         "no_rope_layers": [1, 1, 1, 0, 1]},
        "bfloat16", "50GB",
    ),
    # 62 layers are what tells 27B, whose scores are divided by the root of the width per head.
    "gemma3 27b": (
        "gemma-3-270m-it", "mistral",
        {"num_hidden_layers": 62, "head_dim": 32, "query_pre_attn_scalar": 16, "sliding_window": 32, "vocab_size": 32000,
         "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 10 + ["sliding_attention"] * 2},
        "float32", "50GB",
    ),
    # With a tower that sees, which is left out, and the heads that its configuration does not name.
    "gemma3 4b": (
        "gemma-3-4b", "mistral", {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 7, "sliding_window": 32,
                                  "vocab_size": 32000},
        "bfloat16", "50GB",
    ),
    # With caps that scores and logits come near.
    "gemma2": (
        "gemma-2-2b", "mistral",
        {"num_hidden_layers": 4, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 32, "vocab_size": 32000,
         "attn_logit_softcapping": 5.0, "final_logit_softcapping": 10.0},
        "bfloat16", "50GB",
    ),
    # Logits of a width of 64 are not so large that they want an eighth.
    "granite": (
        "granite-3.3-2b", "smollm2", {"vocab_size": 49152, "attention_multiplier": 0.5, "logits_scaling": 2.0}, "bfloat16", "50GB",
    ),
    # 64 positions are a long document for the one and a short one for the other.
    "phi4": (
        "Phi-4-mini", "phi4",
        {**SMOLLM2_TOKENS, "pad_token_id": 0, "original_max_position_embeddings": 32,
         "rope_scaling": {"type": "longrope", "long_factor": [1.0, 1.2, 1.6, 4.0, 11.0, 36.0], "short_factor": [1.0] * 6}},
        "bfloat16", "50GB",
    ),
    "phi3": (
        "Phi-3-mini", "phi3",
        {"max_position_embeddings": 131072, "num_key_value_heads": 4,
         "rope_scaling": {"type": "longrope", "long_factor": [8.0] * 8, "short_factor": [1.0, 1.1, 1.4, 1.7, 2.0, 2.0, 2.5, 3.0]}},
        "float32", "50GB",
    ),
    "qwen35": ("Qwen3.5", "smollm2 fast", {**SMALL_QWEN35, **SMOLLM2_TOKENS}, "float32", "50GB"),
    "qwen35 with vision": (
        "Qwen3.5 with vision", "qwen",
        {**SMALL, **SMALL_QWEN35, "linear_num_value_heads": 6, "tie_word_embeddings": False,
         "layer_types": ["full_attention", "linear_attention", "linear_attention", "full_attention", "linear_attention"],
         "rope_parameters": {"rope_type": "default", "rope_theta": 500, "partial_rotary_factor": 0.5}},
        "bfloat16", "10MB",
    ),
    "qwen35moe": ("Qwen3.5 MoE", "qwen", SMALL_QWEN35_MOE, "bfloat16", "50GB"),
    "qwen3next": ("Qwen3-Next", "smollm2 fast", {**SMALL_QWEN3_NEXT, **SMOLLM2_TOKENS}, "float32", "50GB"),
    "gpt-oss": ("gpt-oss-20b", "smollm2", {**SMALL_GPT_OSS, **SMOLLM2_TOKENS, "pad_token_id": 0}, "bfloat16", "50GB"),
}
