"""Read the latent attention of a Hugging Face `config.json`."""

from .config import MlaConfig
from .hf_keys import Keys
from .hf_rules import FamilyRules
from .index_config import IndexConfig
from .rope import RopeConfig, YarnScaling


def read_mla(
    keys: Keys, rules: FamilyRules, rope: RopeConfig, index: IndexConfig | None
) -> MlaConfig:
    """Read multi-head latent attention.

    Args:
        keys: of the file.
        rules: of its type.
        rope: its rotation.
        index: what finds the positions to which it attends.

    Raises:
        ConfigError: a key is missing, of the wrong type, or asks for what is not modelled.
    """
    if rules.is_kimi_k3:
        keys.must_say("mla_use_output_gate", True)
    n_heads = keys.integer("num_attention_heads")
    keys.must_be("num_key_value_heads", n_heads)
    keys.must_be("attention_bias", False)
    temperature = 1.0
    if isinstance(rope.scaling, YarnScaling) and rope.scaling.mscale_all_dim:
        temperature = rope.scaling.temperature(rope.scaling.mscale_all_dim)
    return MlaConfig(
        n_heads=n_heads,
        q_lora_rank=_read_query_rank(keys),
        kv_lora_rank=keys.integer("kv_lora_rank"),
        nope_head_dim=keys.integer("qk_nope_head_dim"),
        rope_head_dim=rope.dim,
        v_head_dim=keys.integer("v_head_dim"),
        rope_temperature=temperature,
        index=index,
        # The other classes fix what is added under the roots of these two norms.
        latent_norm_eps=keys.number("rms_norm_eps") if rules.is_kimi_k3 else 1e-6,
        gated=rules.is_bailing_hybrid,
        gates_values=rules.is_kimi_k3,
    )


def _read_query_rank(keys: Keys) -> int | None:
    """Return the width of the latent of queries; null says that they have none."""
    keys.read.add("q_lora_rank")
    is_said = "q_lora_rank" in keys.values or "q_lora_rank" in keys.defaults
    is_null = is_said and not keys.has("q_lora_rank")
    return None if is_null else keys.integer("q_lora_rank")
