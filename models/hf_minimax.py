"""Read what MiniMax-M3's `config.json` says beside the usual keys: blocks that an index chooses.

Read are the keys of the hub (`sparse_attention_config`) and those of transformers 5 (`index_*`,
`layer_types`).
"""

from dataclasses import replace

from .config_parts import BlockIndexConfig, GqaConfig
from .hf_keys import Keys

#: What files call layers that attend to blocks, and to all positions.
_BLOCKED, _FULL = "minimax_m3_sparse", "full_attention"


def read_blocks(keys: Keys, read: GqaConfig, n_layers: int) -> tuple[GqaConfig, tuple[int, ...]]:
    """Return the attention with its index of blocks, and the layers that attend to these.

    Args:
        keys: of the file.
        read: what the usual keys say of the attention.
        n_layers: layers of the model.

    Raises:
        ConfigError: the file asks for what its class does not make, or says both, and not the same.

    Source:
        `MiniMaxM3VLTextConfig` and `MiniMaxM3VLIndexer` of Hugging Face transformers 5.24. The
        hub's keys that these do not know switch what they never have: values of an index, blocks at
        the start that are always chosen.
    """
    keys.must_be("use_gemma_norm", True)
    keys.must_be("attention_output_gate", False)
    keys.must_be("qk_norm_type", "per_head")
    layers = _blocked_layers(keys, n_layers)
    hub = keys.mapping("sparse_attention_config") or Keys({}, keys.where, keys.defaults)
    marks = [int(layer in layers) for layer in range(n_layers)]
    hub.must_be("use_sparse_attention", True)
    hub.must_be("sparse_score_type", "max")
    hub.must_be("sparse_init_block", 0)
    hub.must_be("sparse_attention_freq", marks)
    hub.must_be("sparse_disable_index_value", marks)
    for part, key in ((hub, "sparse_num_index_heads"), (keys, "index_n_heads")):
        part.must_be(key, read.n_kv_heads)  # a head of keys has a query of the index
    index = BlockIndexConfig(
        head_dim=_either(keys, "index_head_dim", hub, "sparse_index_dim"),
        block_size=_either(keys, "index_block_size", hub, "sparse_block_size"),
        top_blocks=_either(keys, "index_topk_blocks", hub, "sparse_topk_blocks"),
        local_blocks=_either(keys, "index_local_blocks", hub, "sparse_local_block"),
    )
    hub.finish()
    return replace(read, block_index=index if layers else None), layers


def _blocked_layers(keys: Keys, n_layers: int) -> tuple[int, ...]:
    """Return the layers that attend to blocks: as `layer_types` lists them, or the hub marks."""
    kinds = keys.texts("layer_types")
    hub = keys.mapping("sparse_attention_config")
    if not kinds and hub is not None:
        marks = hub.integers("sparse_attention_freq", default=[0] * n_layers)
        kinds = tuple(_BLOCKED if mark else _FULL for mark in marks)
        if len(kinds) != n_layers or not set(marks) <= {0, 1}:
            raise hub.complain("sparse_attention_freq", f"0 or 1 for each of {n_layers} layers")
    kinds = kinds or (_FULL,) * n_layers
    if len(kinds) != n_layers or not set(kinds) <= {_BLOCKED, _FULL}:
        raise keys.complain(
            "layer_types", f'"{_FULL}" or "{_BLOCKED}" for each of {n_layers} layers'
        )
    return tuple(layer for layer, kind in enumerate(kinds) if kind == _BLOCKED)


def _either(keys: Keys, key: str, hub: Keys, hub_key: str) -> int:
    """Read a number under the name of transformers 5, or of the hub."""
    if not hub.has(hub_key):
        return keys.integer(key)
    number = hub.integer(hub_key)
    keys.must_be(key, number)
    return number
