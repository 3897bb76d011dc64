"""Read the mixture of experts of a Hugging Face `config.json`.

Experts must fill every layer behind some leading dense ones, or every so-many-th; other patterns
are refused.
"""

from .config import MoeConfig, Situ
from .hf_keys import Keys
from .hf_rules import Activation, ExpertRules
from .hf_step import read_step_dense_layers

#: Spellings of how many experts a token uses.
_TOP_K = (
    *("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "top_k_experts"),
    "moe_top_k",
)
#: Spellings of how many there are.
_EXPERTS = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")


def read_experts(
    keys: Keys,
    rules: ExpertRules,
    n_layers: int,
    activation: Activation = "silu",
    situ: Situ | None = None,
) -> MoeConfig:
    """Read sizes and router of a mixture of experts.

    Args:
        keys: of the file.
        rules: what the type of model fixes.
        n_layers: layers of the model.
        activation: of its MLPs.
        situ: the numbers of that activation.

    Raises:
        ConfigError: a key is missing, of the wrong type, or asks for what is not modelled.
    """
    n_dense_layers = _dense_layers(keys, rules, n_layers)
    d_expert = keys.integer(rules.width)
    if not rules.is_nemotron_like:
        keys.must_be("moe_shared_expert_intermediate_size", d_expert)
    keys.must_be("router_dtype", "fp32")
    keys.must_be("moe_router_dtype", "float32")
    score = rules.scoring.partition("_")[0]
    for key in ("scoring_func", "score_function", "moe_router_activation_func"):
        keys.must_be(key, score)
    normalise = keys.boolean(
        "norm_topk_prob",
        "moe_renormalize",
        default=rules.is_normalised if rules.is_normalised or rules.weighs_rows else None,
    )
    if rules.is_normalised and not normalise:
        raise keys.complain("norm_topk_prob", "true, as this type of model always does")
    is_like = rules.is_deepseek_like or rules.is_nemotron_like
    n_shared = 0
    if is_like and not rules.is_mimo_v2:
        n_shared = keys.integer("n_shared_experts", "num_shared_experts", least=0)
    if rules.weighs_rows:
        keys.must_be("norm_topk_prob", False)
        n_shared = 1
    if rules.has_gated_shared:
        n_shared = _shared_of_own_width(keys, d_expert, "shared_expert_intermediate_size")
    if rules.is_nemotron_like:
        keys.must_be("n_shared_experts", 1)
        n_shared = _shared_of_own_width(keys, d_expert, "moe_shared_expert_intermediate_size")
    if is_like:
        keys.must_be("topk_method", "noaux_tc")
    if rules.has_own_norms:
        n_shared = _shared_of_own_width(keys, d_expert, "intermediate_size")
    if rules.is_step:
        n_shared = _shared_of_own_width(keys, d_expert, "share_expert_dim", "share_expert_dims")
    if rules.is_minimax_m3:
        for key in ("n_shared_experts", "num_shared_experts"):
            keys.must_be(key, 1)
        keys.must_be("moe_intermediate_size", d_expert)
        n_shared = _shared_of_own_width(keys, d_expert, "shared_intermediate_size")
    if rules.is_corrected:
        keys.must_be("use_routing_bias", True)
    if rules.is_kimi_k3:  # of others it is not known whether they come before the norm
        keys.must_be("routed_scaling_factor", 1.0)
    d_latent = _latent_width(keys, rules)
    has_norm = rules.is_kimi_k3 and keys.boolean("latent_moe_use_norm", default=False)
    if has_norm and d_latent is None:
        raise keys.complain(
            "routed_expert_hidden_size", "a width, as 'latent_moe_use_norm' is true"
        )
    is_corrected = is_like and keys.boolean("moe_router_enable_expert_bias", default=True)
    return MoeConfig(
        n_experts=keys.integer(*_EXPERTS),
        top_k=keys.integer(*_TOP_K),
        n_shared=n_shared,
        d_expert=d_expert,
        n_groups=keys.integer("n_group", "num_expert_group") if is_like else 1,
        topk_groups=keys.integer("topk_group") if is_like else 1,
        routed_scaling=_scaling(keys, rules),
        normalise=normalise,
        n_dense_layers=n_dense_layers,
        interval=_interval(keys, rules, n_layers),
        scoring=rules.scoring,
        correction_bias=rules.is_corrected or rules.is_step or is_corrected,
        router_offset=rules.has_biases,
        expert_bias=rules.has_biases,
        swiglu_limit=keys.number("swiglu_limit") if rules.is_clamped else None,
        # The number of the released code, which files of before transformers 5 do not hold.
        swiglu_alpha=keys.number("swiglu_alpha", default=1.702) if rules.is_clamped else 1.702,
        weighs_rows=rules.weighs_rows,
        activation=activation,
        has_own_norms=rules.has_own_norms,
        gated_shared=rules.has_gated_shared,
        d_latent=d_latent,
        latent_norm=has_norm,
        situ=situ,
    )


def _latent_width(keys: Keys, rules: ExpertRules) -> int | None:
    """Return the width of the rows that experts take, where it is not the model's."""
    if rules.is_nemotron_like:
        return keys.optional_integer("moe_latent_size")
    return keys.optional_integer("routed_expert_hidden_size") if rules.is_kimi_k3 else None


def _scaling(keys: Keys, rules: ExpertRules) -> float:
    """Return what multiplies weights; MiMo-V2's null is 1."""
    if rules.is_step:
        return keys.number("moe_router_scaling_factor")
    if not (rules.is_deepseek_like or rules.is_nemotron_like or rules.is_minimax_m3):
        return 1.0
    if rules.is_mimo_v2:
        return keys.optional_number("routed_scaling_factor") or 1.0
    return keys.number("routed_scaling_factor")


def _shared_of_own_width(keys: Keys, d_expert: int, *spellings: str) -> int:
    """Return how many experts the shared one is as wide as."""
    width = keys.integer(*spellings)
    if width % d_expert:
        raise keys.complain(spellings[0], f"a multiple of the width of an expert, {d_expert}")
    return width // d_expert


def _dense_layers(keys: Keys, rules: ExpertRules, n_layers: int) -> int:
    """Return how many layers, all at the start, have a dense MLP."""
    if rules.is_nemotron_like:
        return 0
    if rules.is_step:
        return read_step_dense_layers(keys, n_layers)
    if rules.is_mimo_v2 or rules.is_minimax_m3:
        n_dense = _marked_as_dense(keys, n_layers, usual=int(rules.is_mimo_v2))
        keys.must_be("first_k_dense_replace", n_dense)
    elif rules.is_deepseek_like:
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
    return n_dense


def _marked_as_dense(keys: Keys, n_layers: int, usual: int) -> int:
    """Return how many layers a file marks as dense, from the first; without marks the usual."""
    kinds = [int(kind == "sparse") for kind in keys.texts("mlp_layer_types")]
    marks = kinds or [0] * usual + [1] * (n_layers - usual)
    return [*keys.integers("moe_layer_freq", default=marks), 1].index(1)


def _interval(keys: Keys, rules: ExpertRules, n_layers: int) -> int:
    """Return how many layers lie from one with experts to the next; Llama 4 alone leaves some."""
    if not rules.weighs_rows:
        keys.must_be("interleave_moe_layer_step", 1)
        return 1
    interval = keys.integer("interleave_moe_layer_step")
    keys.must_be("moe_layers", list(range(interval - 1, n_layers, interval)))
    return interval
