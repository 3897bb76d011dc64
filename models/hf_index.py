"""Read the index of sparse attention in a Hugging Face `config.json`, and which layers have one."""

from .hf_keys import Keys
from .hf_rules import FamilyRules
from .index_config import IndexConfig

#: What files call attention to what an index finds: the hub's, and those of transformers 5.
_SPARSE = frozenset(("deepseek_sparse_attention", "indexed_attention"))


def read_index(
    keys: Keys, rules: FamilyRules, n_layers: int
) -> tuple[IndexConfig | None, tuple[int, ...]]:
    """Read the index.

    Args:
        keys: of the file.
        rules: what the type of model fixes.
        n_layers: layers of the model.

    Returns:
        The index, None for a type without; and the layers that attend where the last one with an
        index does.

    Raises:
        ConfigError: a key is missing, of the wrong type, or asks for what is not modelled.
    """
    if not rules.has_index:
        return None, ()
    if not set(keys.texts("layer_types")) <= _SPARSE:
        raise keys.complain("layer_types", f"a list of {' or '.join(sorted(_SPARSE))}")
    is_interleaved = rules.is_interleaved and not rules.names.is_index_halved
    keys.must_be("indexer_rope_interleave", is_interleaved)
    index = IndexConfig(
        n_heads=keys.integer("index_n_heads"),
        head_dim=keys.integer("index_head_dim"),
        top_k=keys.integer("index_topk"),
    )
    keys.read.add("index_share_for_mtp_iteration")  # prediction layers are left out
    return index, _followers(keys, n_layers) if rules.has_followers else ()


def _followers(keys: Keys, n_layers: int) -> tuple[int, ...]:
    """Return the layers without an index: as listed, by a pattern of letters, or every few.

    Source: `GlmMoeDsaConfig` of Hugging Face transformers 5.24.
    """
    every, first = (
        keys.integer("index_topk_freq", default=1),
        keys.integer("index_skip_topk_offset", default=2, least=0),
    )
    pattern, kinds = keys.optional_text("index_topk_pattern"), keys.texts("indexer_types")
    if not kinds and pattern is not None:
        names = {"F": "full", "S": "shared"}
        kinds = tuple(names.get(letter, letter) for letter in pattern)
    if not kinds:
        has_index = [max(layer - first + 1, 0) % every == 0 for layer in range(n_layers)]
        kinds = tuple("full" if own else "shared" for own in has_index)
    if len(kinds) != n_layers or not set(kinds) <= {"full", "shared"} or kinds[0] == "shared":
        key = "indexer_types" if keys.has("indexer_types") else "index_topk_pattern"
        raise keys.complain(
            key, f'"full" or "shared" for each of {n_layers} layers, "full" for the first'
        )
    return tuple(layer for layer, kind in enumerate(kinds) if kind == "shared")
