"""What a type of model takes for keys that its file leaves out: the defaults of its own class."""

import pytest
from released_configs import hub_fields

from models.hf_config import from_hf
from models.hf_families import FAMILIES
from models.params import n_parameters

#: Of transformers, by type; DeepSeek's types and Ling 2's have no row of defaults.
CLASSES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen2_moe": "Qwen2Moe",
    "mimo": "Qwen2",
    "glm4": "Glm4",
    "olmo2": "Olmo2",
    "olmo3": "Olmo3",
    "exaone4": "Exaone4",
    "qwen3": "Qwen3",
    "qwen3_moe": "Qwen3Moe",
    "qwen3_vl_text": "Qwen3VLText",
    "qwen3_vl_moe_text": "Qwen3VLMoeText",
    "qwen3_next": "Qwen3Next",
    "qwen3_5_text": "Qwen3_5Text",
    "qwen3_5_moe_text": "Qwen3_5MoeText",
    "phi3": "Phi3",
    "smollm3": "SmolLM3",
    "granite": "Granite",
    "mixtral": "Mixtral",
    "gpt_oss": "GptOss",
    "gemma2": "Gemma2",
    "gemma3_text": "Gemma3Text",
    "gemma4_text": "Gemma4Text",
    "llama4_text": "Llama4Text",
    "mimo_v2_flash": "MiMoV2Flash",
    "step3p5": "Step3p7Text",
    "step3p7": "Step3p7Text",
    "glm4_moe": "Glm4Moe",
    "minimax_m2": "MiniMaxM2",
    "minimax_m3": "MiniMaxM3VLText",
    "minimax_m3_vl_text": "MiniMaxM3VLText",
    "nemotron_h": "NemotronH",
    "bailing_hybrid": "BailingHybrid",
}
#: Keys of which a class has a default that a row must have too; None says nothing.
KEYS = """
num_key_value_heads head_dim rms_norm_eps tie_word_embeddings attention_bias sliding_window
use_sliding_window max_window_layers norm_topk_prob use_qk_norm swiglu_limit swiglu_alpha
query_pre_attn_scalar final_logit_softcapping attn_logit_softcapping
attention_k_eq_v hidden_size_per_layer_input no_rope_layer_interval
embedding_multiplier residual_multiplier attention_multiplier logits_scaling
attention_chunk_size floor_scale attn_scale interleave_moe_layer_step
v_head_dim attention_value_scale moe_router_scaling_factor
index_head_dim index_block_size index_topk_blocks index_local_blocks
"""
#: What holds here where a row says nothing.
UNSAID = {
    "tie_word_embeddings": False,
    "attention_bias": False,
    "norm_topk_prob": True,
    "use_sliding_window": False,
}


def fields_without(name: str, *keys: str) -> dict:
    fields = hub_fields(name)
    assert set(keys) <= set(fields)
    return {key: value for key, value in fields.items() if key not in keys}


def test_every_type_with_a_class_has_a_row():
    assert {kind for kind, rules in FAMILIES.items() if rules.defaults} == set(CLASSES)


@pytest.mark.parametrize(
    ("name", "keys", "count"),
    [
        ("mixtral-8x7b", ("num_key_value_heads",), 46_702_792_704),
        ("gpt-oss-20b", ("num_key_value_heads", "head_dim"), 20_914_757_184),
        ("qwen3-32b", ("head_dim",), 32_762_123_264),
        ("qwen3-235b-a22b", ("num_key_value_heads",), 235_093_634_560),
        ("glm-4.6", ("num_key_value_heads", "partial_rotary_factor"), 352_797_829_024),
        ("mistral-7b", ("num_key_value_heads", "sliding_window"), 7_241_732_096),
        # Not what was released: its class has 32 heads of keys, and as many as queries Llama's.
        ("qwen3-32b", ("num_key_value_heads",), 34_775_389_184),
        ("llama-3.1-8b", ("num_key_value_heads",), 8_835_567_616),
    ],
)
def test_heads_left_out_are_those_of_the_class(name, keys, count):
    assert n_parameters(from_hf(fields_without(name, *keys))) == count


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("gpt-oss-20b", ("layer_types", "sliding_window", "rope_scaling", "rope_theta")),
        ("gpt-oss-20b", ("attention_bias", "swiglu_limit", "rms_norm_eps")),
        ("qwen3-32b", ("use_sliding_window", "sliding_window", "max_window_layers")),
        ("mistral-7b", ("sliding_window", "rope_theta")),
        ("phi-4", ("sliding_window", "rms_norm_eps")),
        ("smollm3-3b", ("num_key_value_heads", "tie_word_embeddings", "no_rope_layers")),
        ("llama-2-70b", ("rope_theta", "attention_bias", "tie_word_embeddings")),
    ],
)
def test_rules_left_out_are_those_of_the_class(name, keys):
    assert from_hf(fields_without(name, *keys)) == from_hf(fields_without(name))


def test_null_is_no_key_left_out():
    fields = fields_without("mistral-7b")
    assert from_hf(fields | {"sliding_window": None}).attention.window is None
    # transformers: `if num_key_value_heads is None`, as many as queries.
    assert from_hf(fields | {"num_key_value_heads": None}).attention.n_kv_heads == 32


@pytest.mark.slow
@pytest.mark.parametrize("kind", CLASSES)
def test_the_classes_still_have_these_defaults(kind):
    transformers = pytest.importorskip("transformers", reason="`make oracle`")
    made, rules = getattr(transformers, CLASSES[kind] + "Config")(), FAMILIES[kind]
    of_class = type(made).__dataclass_fields__
    for key in KEYS.split():
        if key == "tie_word_embeddings" and kind.startswith("qwen3_vl"):
            continue  # the class of the whole model has its own
        # What its class calls otherwise, the reader takes by either name.
        of_name = {("nemotron_h", "rms_norm_eps"): "layer_norm_epsilon"}.get((kind, key), key)
        if of_name in of_class:
            theirs = of_class[of_name].default
            assert rules.defaults.get(key, UNSAID.get(key)) == theirs, key
        else:
            assert key not in rules.defaults, key
    if kind == "nemotron_h":
        return  # its class has no rotation, which a file may name all the same
    rotation = made.rope_parameters
    if rules.is_step:  # of a kind of layer where there are some, and of none by default
        rotation = rotation | {"sliding_attention": rotation["full_attention"]}
    if rules.has_local_rotation:
        base = rules.defaults.get("rope_local_base_freq", rules.defaults["rope_theta"])
        of_sliding = {"rope_type": "default", "rope_theta": base}
        if rules.is_partial:
            of_sliding["partial_rotary_factor"] = rules.defaults["partial_rotary_factor"]
        whole = {"partial_rotary_factor": 1.0} if rules.is_step else {}
        assert whole | rotation["sliding_attention"] == of_sliding
        rotation = rotation["full_attention"]
    assert rules.defaults["rope_theta"] == rotation["rope_theta"]
    if not rules.has_global_heads:
        share = rotation.get("partial_rotary_factor", 1.0 if rules.is_step else None)
        assert rules.defaults.get("partial_rotary_factor") == share
    scaling = {key: rotation[key] for key in rotation if key != "rope_theta"}
    if not rules.has_global_heads:
        scaling.pop("partial_rotary_factor", None)
    assert dict(rules.scaling_by_default or {"rope_type": "default"}) == scaling
