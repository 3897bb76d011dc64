"""Read the mixture of experts of a Hugging Face `config.json`.

Experts must fill every layer behind some leading dense ones; other patterns are refused.
"""

from .config import MoeConfig
from .hf_keys import Keys
from .hf_rules import ExpertRules


def read_experts(keys: Keys, rules: ExpertRules, n_layers: int) -> MoeConfig:
    """Read sizes and router of a mixture of experts.

    Args:
        keys: of the file.
        rules: what the type of model fixes.
        n_layers: layers of the model.

    Raises:
        ConfigError: a key is missing, of the wrong type, or asks for what is not modelled.
    """
    n_dense_layers = _dense_layers(keys, rules, n_layers)
    d_expert = keys.integer(rules.width)
    keys.must_be("moe_shared_expert_intermediate_size", d_expert)
    keys.must_be("router_dtype", "fp32")
    keys.must_be("moe_router_dtype", "float32")
    score = "sigmoid" if rules.scoring == "sigmoid" else "softmax"
    for key in ("scoring_func", "score_function", "moe_router_activation_func"):
        keys.must_be(key, score)
    normalise = keys.boolean(
        "norm_topk_prob", "moe_renormalize", default=True if rules.is_normalised else None
    )
    if rules.is_normalised and not normalise:
        raise keys.complain("norm_topk_prob", "true, as this type of model always does")
    is_like = rules.is_deepseek_like
    n_shared = keys.integer("n_shared_experts", "num_shared_experts", least=0) if is_like else 0
    if rules.has_gated_shared:
        n_shared = _shared_of_own_width(keys, d_expert)
    if is_like:
        keys.must_be("topk_method", "noaux_tc")
    if rules.is_corrected:
        keys.must_be("use_routing_bias", True)
    is_corrected = is_like and keys.boolean("moe_router_enable_expert_bias", default=True)
    return MoeConfig(
        n_experts=keys.integer("n_routed_experts", "num_local_experts", "num_experts"),
        top_k=keys.integer("num_experts_per_tok", "num_experts_per_token", "experts_per_token"),
        n_shared=n_shared,
        d_expert=d_expert,
        n_groups=keys.integer("n_group", "num_expert_group") if is_like else 1,
        topk_groups=keys.integer("topk_group") if is_like else 1,
        routed_scaling=keys.number("routed_scaling_factor") if is_like else 1.0,
        normalise=normalise,
        n_dense_layers=n_dense_layers,
        scoring=rules.scoring,
        correction_bias=rules.is_corrected or is_corrected,
        router_offset=rules.has_biases,
        expert_bias=rules.has_biases,
        swiglu_limit=keys.number("swiglu_limit") if rules.is_clamped else None,
        # The number of the released code, which files of before transformers 5 do not hold.
        swiglu_alpha=keys.number("swiglu_alpha", default=1.702) if rules.is_clamped else 1.702,
        gated_shared=rules.has_gated_shared,
    )


def _shared_of_own_width(keys: Keys, d_expert: int) -> int:
    """Return how many experts the shared one is as wide as."""
    width = keys.integer("shared_expert_intermediate_size")
    if width % d_expert:
        raise keys.complain(
            "shared_expert_intermediate_size", f"a multiple of the width of an expert, {d_expert}"
        )
    return width // d_expert


def _dense_layers(keys: Keys, rules: ExpertRules, n_layers: int) -> int:
    """Return how many layers, all at the start, have a dense MLP."""
    if rules.is_deepseek_like:
        n_dense = keys.integer("first_k_dense_replace", least=0, most=n_layers)
    else:
        listed = keys.integers("mlp_only_layers", default=[])
        n_dense = len(listed)
        if listed != tuple(range(n_dense)) or n_dense > n_layers:
            raise keys.complain("mlp_only_layers", "the first layers, in order")
    n_sparse = n_layers - n_dense
    keys.must_be("mlp_layer_types", ["dense"] * n_dense + ["sparse"] * n_sparse)
    keys.must_be("moe_layer_freq", 1, [0] * n_dense + [1] * n_sparse)
    keys.must_be("decoder_sparse_step", 1)
    keys.must_be("interleave_moe_layer_step", 1)
    return n_dense
