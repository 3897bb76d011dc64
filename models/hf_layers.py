"""Read what the layers of some types have of a Hugging Face `config.json` beside the usual keys.

Caps and multipliers of scores, layers without rotation, chunks, and heads of which sliding layers
have others.
"""

from dataclasses import replace
from typing import Literal

from .config import GqaConfig
from .config_parts import Warming
from .hf_keys import Keys
from .hf_rules import FamilyRules

_CAPS = {"logits": "final_logit_softcapping", "scores": "attn_logit_softcapping"}


def read_cap(keys: Keys, rules: FamilyRules, of: Literal["logits", "scores"]) -> float | None:
    """Return within what logits or scores are kept; a type without caps leaves the key unread."""
    return keys.optional_number(_CAPS[of]) if of in rules.caps else None


def read_scale(keys: Keys, rules: FamilyRules) -> float | None:
    """Return what multiplies q·k, where it is not one over the root of a head's width."""
    if rules.has_multipliers:
        return keys.number("attention_multiplier")
    if rules.has_global_heads:
        return 1.0
    return keys.number("query_pre_attn_scalar") ** -0.5 if rules.has_query_scalar else None


def read_unrotated(
    keys: Keys, rules: FamilyRules, n_layers: int, recurrent_layers: tuple[int, ...]
) -> tuple[int, ...]:
    """Return the layers without rotation: those that `no_rope_layers` marks with 0.

    Args:
        keys: of the file.
        rules: of its type.
        n_layers: layers of the model.
        recurrent_layers: those that do not attend.

    Raises:
        ConfigError: a list of other marks, or of too few.
    """
    if rules.is_kimi_linear:
        keys.must_say("mla_use_nope", True)
        return tuple(layer for layer in range(n_layers) if layer not in recurrent_layers)
    if not rules.has_unrotated_layers:
        return ()
    interval = keys.integer("no_rope_layer_interval")
    by_interval = [int((layer + 1) % interval != 0) for layer in range(n_layers)]
    turns = keys.integers("no_rope_layers", default=by_interval)
    if rules.is_llama4 and not turns:  # to its class an empty list is none
        turns = tuple(by_interval)
    if len(turns) < n_layers or not set(turns) <= {0, 1}:
        raise keys.complain("no_rope_layers", f"a list of 0 or 1 for each of {n_layers} layers")
    return tuple(layer for layer, turn in enumerate(turns[:n_layers]) if not turn)


def read_chunks(
    keys: Keys, n_layers: int, unrotated: tuple[int, ...]
) -> tuple[int | None, tuple[int, ...]]:
    """Return the positions of a chunk, and which layers see their own alone: the rotated ones.

    Args:
        keys: of a file of Llama 4.
        n_layers: layers of the model.
        unrotated: those without rotation.

    Raises:
        ConfigError: `layer_types` says otherwise.
    """
    chunk = keys.optional_integer("attention_chunk_size")
    chunked = tuple(i for i in range(n_layers) if chunk is not None and i not in unrotated)
    usual = ["chunked_attention" if i in chunked else "full_attention" for i in range(n_layers)]
    if keys.texts("layer_types") not in ((), tuple(usual)):
        raise keys.complain("layer_types", "chunked attention in layers with rotation alone")
    return (chunk, chunked) if chunked else (None, ())


def read_warming(keys: Keys) -> Warming | None:
    """Return how queries of Llama 4's layers without rotation grow with their position, if so."""
    # Files of before transformers 4.52 say 4 for true.
    keys.must_be("attn_temperature_tuning", True, False, 4)
    warming = Warming(step=keys.integer("floor_scale"), strength=keys.number("attn_scale"))
    return warming if keys.values.get("attn_temperature_tuning", True) else None


def read_global_heads(
    keys: Keys, local: GqaConfig, n_layers: int, sliding_layers: tuple[int, ...]
) -> GqaConfig:
    """Return the attention of layers that do not slide, from that of sliding ones (Gemma 4).

    Released files say it once, transformers 5 in `per_layer_config` for each of these layers.

    Args:
        keys: of the file.
        local: attention of sliding layers.
        n_layers: layers of the model.
        sliding_layers: those that slide.

    Raises:
        ConfigError: a key is of the wrong type, or the file asks for experts, for embeddings of
            every layer, or for layers that share keys, which are not modelled.
    """
    keys.must_be("use_double_wide_mlp", False)
    keys.must_be("num_kv_shared_layers", 0)
    keys.must_be("use_bidirectional_attention", "vision")  # pictures alone
    if keys.integer("hidden_size_per_layer_input", least=0):
        raise keys.complain("hidden_size_per_layer_input", "0, the only value supported")
    keys.read.add("vocab_size_per_layer_input")  # of these
    are_values_keys = keys.boolean("attention_k_eq_v")
    width, n_kv_heads = keys.integer("global_head_dim"), local.n_kv_heads
    own_heads = keys.optional_integer("num_global_key_value_heads")
    if are_values_keys and own_heads is not None:
        n_kv_heads = own_heads
    by_layer = keys.mapping("per_layer_config")
    if by_layer is not None:
        layers = [str(layer) for layer in range(n_layers) if layer not in sliding_layers]
        parts = list(by_layer.values.values())
        if sorted(by_layer.values) != sorted(layers) or any(part != parts[0] for part in parts):
            raise keys.complain("per_layer_config", "the same for all layers that do not slide")
        own = Keys(parts[0], f"{by_layer.where}, {layers[0]}")
        width = own.integer("head_dim", default=local.head_dim)
        n_kv_heads = own.integer("num_key_value_heads", default=local.n_kv_heads)
        own.finish()
    return replace(
        local,
        n_kv_heads=n_kv_heads,
        head_dim=width,
        are_values_keys=are_values_keys,
        window=None,
    )
