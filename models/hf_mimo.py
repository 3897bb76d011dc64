"""Read what MiMo-V2's `config.json` says beside the usual keys: windows, heads, dense layers.

Read are the keys of the hub (`swa_*`, `hybrid_layer_pattern`) and those of transformers 5
(`layer_types`), whose class fixes what the former say.
"""

from dataclasses import replace

from .config import GqaConfig
from .hf_keys import Keys


def read_mimo_windows(
    keys: Keys, n_layers: int, listed: tuple[int, ...] | None
) -> tuple[int, tuple[int, ...]]:
    """Return how many keys a sliding layer sees, its own included, and which layers slide.

    Args:
        keys: of the file.
        n_layers: layers of the model.
        listed: the sliding layers of `layer_types`.

    Raises:
        ConfigError: the file says both, and not the same.

    Source:
        `MiMoV2FlashConfig` of Hugging Face transformers: `sliding_window_size` counts the keys
        before a query; all but the first layer and every sixth slide.
    """
    window = keys.integer("sliding_window")
    before = keys.optional_integer("sliding_window_size")
    if before is not None:
        keys.must_be("sliding_window", before)
        keys.must_be("attention_chunk_size", before)
        window = before + 1
    usual = [int(i > 0 and (i + 1) % 6 != 0) for i in range(n_layers)]
    if listed is not None:
        usual = [int(i in listed) for i in range(n_layers)]
    marks = keys.integers("hybrid_layer_pattern", default=usual)
    if len(marks) != n_layers or not set(marks) <= {0, 1}:
        raise keys.complain(
            "hybrid_layer_pattern", f"a list of 0 or 1 for each of {n_layers} layers"
        )
    if listed is not None and list(marks) != usual:
        raise keys.complain("hybrid_layer_pattern", "that of 'layer_types'")
    return window, tuple(i for i, mark in enumerate(marks) if mark)


def read_mimo_heads(keys: Keys, read: GqaConfig) -> tuple[GqaConfig, GqaConfig]:
    """Return the attention of layers that see all keys, and of sliding ones.

    Args:
        keys: of the file.
        read: what the usual keys say, with the window.

    Raises:
        ConfigError: the file asks for other heads than its class makes.
    """
    width = keys.integer("v_head_dim")
    scale = keys.optional_number("attention_value_scale")
    full = replace(
        read,
        window=None,
        value_dim=None if width == read.head_dim else width,
        value_scale=1.0 if scale is None else scale,
    )
    local = replace(full, n_kv_heads=2 * full.n_kv_heads, sinks=True, window=read.window)
    keys.must_be("add_full_attention_sink_bias", False)
    keys.must_be("add_swa_attention_sink_bias", True)
    keys.must_be("swa_num_attention_heads", local.n_heads)
    keys.must_be("swa_num_key_value_heads", local.n_kv_heads)
    keys.must_be("swa_head_dim", local.head_dim)
    keys.must_be("swa_v_head_dim", local.value_width)
    return full, local
