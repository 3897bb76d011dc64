"""Read the recurrent layers of a Hugging Face `config.json`: which they are, and their sizes.

Gated DeltaNet, Kimi Delta Attention and Mamba2; other recurrences have types that are not read.
"""

from math import inf

import numpy as np

from .config import LayerKind, RecurrentConfig
from .hf_keys import Keys
from .hf_rules import FamilyRules

#: Layers of one block each: a letter of `hybrid_override_pattern`, words of lists, and its kind.
_SINGLE_BLOCKS: tuple[tuple[str, tuple[str, ...], LayerKind], ...] = (
    ("M", ("mamba", "linear_attention"), "recurrent"),
    ("*", ("attention", "full_attention"), "unrotated"),
    ("-", ("mlp",), "dense"),
    ("E", ("moe",), "moe"),
)
#: No step is longer.
_LARGEST = float(np.finfo(np.float32).max)

#: Kinds of layer in a model with recurrent ones, these first.
_RECURRENT_KINDS = ("linear_attention", "full_attention")


def read_recurrence(
    keys: Keys, rules: FamilyRules, n_layers: int
) -> tuple[RecurrentConfig | None, tuple[int, ...]]:
    """Read what recurrent layers are, and which are recurrent beside an MLP.

    Args:
        keys: of the file.
        rules: what the type of model fixes.
        n_layers: layers of the model.

    Raises:
        ConfigError: a key is missing, of the wrong type, or asks for what is not modelled.
    """
    if rules.is_kimi_linear:
        return _read_kimi_delta(keys, rules, n_layers)
    if rules.is_bailing_hybrid:
        return _read_bounded_delta(keys), _read_layers(keys, n_layers, "layer_group_size")
    if rules.has_single_blocks:
        return _read_mamba2(keys), ()
    if not rules.has_recurrent_layers:
        return None, ()
    return _read_delta_net(keys), _read_layers(keys, n_layers)


def read_single_blocks(keys: Keys) -> tuple[LayerKind, ...]:
    """Return the kind of each layer's only block: from a list, or a pattern of letters.

    Args:
        keys: of the file.

    Raises:
        ConfigError: there is neither, both differ, or one has other kinds.
    """
    by_letter = {letter: kind for letter, _, kind in _SINGLE_BLOCKS}
    by_word = {word: kind for _, words, kind in _SINGLE_BLOCKS for word in words}
    found: list[tuple[LayerKind, ...]] = []
    for key in ("layers_block_type", "layer_types"):
        if keys.has(key):
            words = keys.texts(key)
            if not set(words) <= set(by_word):
                raise keys.complain(key, f"a list of {', '.join(map(repr, by_word))}")
            found.append(tuple(by_word[word] for word in words))
    if keys.has("hybrid_override_pattern") or not found:
        letters = keys.text("hybrid_override_pattern", default="")
        if not letters or not set(letters) <= set(by_letter):
            raise keys.complain("hybrid_override_pattern", f"letters of {''.join(by_letter)}")
        found.append(tuple(by_letter[letter] for letter in letters))
    if len(set(found)) > 1:
        raise keys.complain("hybrid_override_pattern", "the layers that the file lists")
    return found[0]


def _read_mamba2(keys: Keys) -> RecurrentConfig:
    keys.must_be("mamba_hidden_act", "silu")
    keys.must_be("mamba_proj_bias", False)
    keys.must_be("use_conv_bias", True)
    keys.must_be("mamba_ssm_cache_dtype", "float32")
    # Beginnings of the training; how a prompt is cut; and widths that the class does not use.
    keys.read.update(("time_step_min", "time_step_max", "time_step_floor", "time_step_rank"))
    keys.read.update(("chunk_size", "expand", "use_mamba_kernels"))
    n_groups, n_heads = keys.integer("n_groups"), keys.integer("mamba_num_heads")
    if n_heads % n_groups:
        raise keys.complain("mamba_num_heads", f"a multiple of the {n_groups} groups")
    least_step, most_step = _read_step_limits(keys)
    return RecurrentConfig(
        n_key_heads=n_groups,
        n_value_heads=n_heads,
        key_dim=keys.integer("ssm_state_size"),
        value_dim=keys.integer("mamba_head_dim"),
        taps=keys.integer("conv_kernel", least=2),
        rule="mamba2",
        least_step=least_step,
        most_step=most_step,
    )


def _read_step_limits(keys: Keys) -> tuple[float, float | None]:
    """Return within what steps stay; a limit beyond all numbers is none.

    The class of transformers 5.24 takes `time_step_min` for the lower limit at prefill, and no
    limit as it decodes; the publisher's code, vLLM and this program take `time_step_limit`.

    Source:
        Pull request 48989 of huggingface/transformers, which is to mend that class.
    """
    key = "time_step_limit"
    keys.read.add(key)
    given = keys.values.get(key)
    if given is None:
        return 0.0, None
    # Strict JSON has no infinity; transformers 5 writes it as an object.
    listed = given if isinstance(given, list) else []
    pair = [inf if one == {"__float__": "Infinity"} else one for one in listed]
    if [type(one) for one in pair] != [float, float] or not 0 <= pair[0] < pair[1]:
        raise keys.complain(key, "two numbers, the lower first")
    least, most = pair
    return least, None if most > _LARGEST else most


def _read_kimi_delta(
    keys: Keys, rules: FamilyRules, n_layers: int
) -> tuple[RecurrentConfig, tuple[int, ...]]:
    part = keys.mapping("linear_attn_config")
    if part is None:
        raise keys.complain("linear_attn_config", "an object")
    keys.must_be("use_grouped_topk", True)
    kda, full = (set(part.integers(key, default=[])) for key in ("kda_layers", "full_attn_layers"))
    if kda & full or kda | full != set(range(1, n_layers + 1)):
        raise part.complain("kda_layers", f"the layers from 1 to {n_layers} that do not attend")
    n_heads, width = part.integer("num_heads"), part.integer("head_dim")
    bound = None
    if rules.is_kimi_k3:
        part.must_say("use_full_rank_gate", True)
        bound = part.below_zero("gate_lower_bound") if part.has("gate_lower_bound") else None
    net = RecurrentConfig(
        n_key_heads=n_heads,
        n_value_heads=n_heads,
        key_dim=width,
        value_dim=width,
        taps=part.integer("short_conv_kernel_size", least=2),
        channel_rank=width,
        is_gate_full=rules.is_kimi_k3,
        decay_bound=bound,
    )
    part.finish()
    return net, tuple(sorted(layer - 1 for layer in kda))


def _read_bounded_delta(keys: Keys) -> RecurrentConfig:
    """Read the Kimi Delta Attention of Ling 3; transformers 5 writes its sizes by other keys."""
    n_heads = keys.integer("linear_num_heads", default=keys.integer("num_attention_heads"))
    # That class writes the width of rotated values as `head_dim`.
    width = keys.integer("linear_head_dim", default=keys.integer("head_dim"))
    bound = keys.below_zero("kda_lower_bound")
    return RecurrentConfig(
        n_key_heads=n_heads,
        n_value_heads=n_heads,
        key_dim=width,
        value_dim=width,
        taps=keys.integer("short_conv_kernel_size", "linear_conv_kernel_dim", least=2),
        is_full_rank=True,
        decay_bound=bound if keys.boolean("kda_safe_gate") else None,
    )


def _read_layers(
    keys: Keys, n_layers: int, every: str = "full_attention_interval"
) -> tuple[int, ...]:
    """Return the recurrent layers: those listed, or all but the last of each interval."""
    interval = keys.integer(every)
    usual = [
        "linear_attention" if (i + 1) % interval else "full_attention" for i in range(n_layers)
    ]
    kinds = list(keys.texts("layer_types")) or usual
    if len(kinds) != n_layers or not set(kinds) <= set(_RECURRENT_KINDS):
        raise keys.complain(
            "layer_types", f"a list of {n_layers} of " + " or ".join(map(repr, _RECURRENT_KINDS))
        )
    if keys.has(every) and kinds != usual:
        raise keys.complain(every, "that of 'layer_types'")
    return tuple(layer for layer, kind in enumerate(kinds) if kind == _RECURRENT_KINDS[0])


def _read_delta_net(keys: Keys) -> RecurrentConfig:
    keys.must_be("attn_output_gate", True)
    keys.must_be("output_gate_type", "swish")
    keys.must_be("mamba_ssm_dtype", "float32")
    n_key_heads = keys.integer("linear_num_key_heads")
    n_value_heads = keys.integer("linear_num_value_heads")
    if n_value_heads % n_key_heads:
        raise keys.complain("linear_num_value_heads", f"a multiple of the {n_key_heads} key heads")
    return RecurrentConfig(
        n_key_heads=n_key_heads,
        n_value_heads=n_value_heads,
        key_dim=keys.integer("linear_key_head_dim"),
        value_dim=keys.integer("linear_value_head_dim"),
        taps=keys.integer("linear_conv_kernel_dim", least=2),
    )
