"""Sizes that tiny configurations share: those of all, with grouped attention, with wide heads."""

from typing import Any

Fields = dict[str, Any]

COMMON: Fields = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    # Larger than the 0.02 of trained models, or the logits are about zero.
    "initializer_range": 0.15,
}
GROUPED: Fields = COMMON | {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "intermediate_size": 24,
}
WIDE_HEADS: Fields = GROUPED | {"head_dim": 16, "rms_norm_eps": 1e-6}
