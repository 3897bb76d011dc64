"""Read the recurrent layers of a Hugging Face `config.json`: which they are, and their sizes.

Gated DeltaNet and Kimi Delta Attention; other recurrences have types that are not read.
"""

from .config import RecurrentConfig
from .hf_keys import Keys
from .hf_rules import FamilyRules

#: Kinds of layer in a model with recurrent ones, these first.
_RECURRENT_KINDS = ("linear_attention", "full_attention")


def read_recurrence(
    keys: Keys, rules: FamilyRules, n_layers: int
) -> tuple[RecurrentConfig | None, tuple[int, ...]]:
    """Read what recurrent layers are, and which layers are recurrent.

    Args:
        keys: of the file.
        rules: what the type of model fixes.
        n_layers: layers of the model.

    Raises:
        ConfigError: a key is missing, of the wrong type, or asks for what is not modelled.
    """
    if rules.is_kimi_linear:
        return _read_kimi_delta(keys, n_layers)
    if not rules.has_recurrent_layers:
        return None, ()
    return _read_delta_net(keys), _read_layers(keys, n_layers)


def _read_kimi_delta(keys: Keys, n_layers: int) -> tuple[RecurrentConfig, tuple[int, ...]]:
    part = keys.mapping("linear_attn_config")
    if part is None:
        raise keys.complain("linear_attn_config", "an object")
    keys.must_be("use_grouped_topk", True)
    kda, full = (set(part.integers(key, default=[])) for key in ("kda_layers", "full_attn_layers"))
    if kda & full or kda | full != set(range(1, n_layers + 1)):
        raise part.complain("kda_layers", f"the layers from 1 to {n_layers} that do not attend")
    n_heads, width = part.integer("num_heads"), part.integer("head_dim")
    net = RecurrentConfig(
        n_key_heads=n_heads,
        n_value_heads=n_heads,
        key_dim=width,
        value_dim=width,
        taps=part.integer("short_conv_kernel_size", least=2),
        channel_rank=width,
    )
    part.finish()
    return net, tuple(sorted(layer - 1 for layer in kda))


def _read_layers(keys: Keys, n_layers: int) -> tuple[int, ...]:
    """Return the recurrent layers: those listed, or all but the last of each interval."""
    interval = keys.integer("full_attention_interval")
    usual = [
        "linear_attention" if (i + 1) % interval else "full_attention" for i in range(n_layers)
    ]
    kinds = list(keys.texts("layer_types")) or usual
    if len(kinds) != n_layers or not set(kinds) <= set(_RECURRENT_KINDS):
        raise keys.complain(
            "layer_types", f"a list of {n_layers} of " + " or ".join(map(repr, _RECURRENT_KINDS))
        )
    if keys.has("full_attention_interval") and kinds != usual:
        raise keys.complain("full_attention_interval", "that of 'layer_types'")
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
