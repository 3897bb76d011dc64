"""Configuration files in other words: spellings that mean the same, keys that are gone or strange.

Every published file is a case; what is done to it is drawn.
"""

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from released_configs import CONFIGS

from lpu_jax.errors import ConfigError
from models.hf_config import from_hf
from models.hf_families import FAMILIES
from models.params import n_parameters

FILES = {path.stem: json.loads(path.read_text()) for path in sorted(CONFIGS.glob("*.json"))}
FIELDS = {name: fields.get("text_config", fields) for name, fields in FILES.items()}

#: Other spellings of a key, seen in files of one family or another.
SPELLINGS = {
    "n_routed_experts": ("num_local_experts", "num_experts"),
    "num_local_experts": ("n_routed_experts", "num_experts"),
    "num_experts": ("n_routed_experts", "num_local_experts"),
    "num_experts_per_tok": ("num_experts_per_token", "experts_per_token"),
    "n_shared_experts": ("num_shared_experts",),
    "num_shared_experts": ("n_shared_experts",),
    "norm_topk_prob": ("moe_renormalize",),
    "rms_norm_eps": ("norm_eps", "layer_norm_epsilon"),
    "torch_dtype": ("dtype",),
    "dtype": ("torch_dtype",),
}
#: Keys without which there is no telling what the model is.
_NEEDED = """
num_hidden_layers hidden_size intermediate_size vocab_size max_position_embeddings rms_norm_eps
num_attention_heads rope_theta q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim
n_routed_experts num_experts num_local_experts num_experts_per_tok n_shared_experts
num_shared_experts moe_intermediate_size n_group topk_group routed_scaling_factor norm_topk_prob
first_k_dense_replace partial_rotary_factor rotary_dim use_qk_norm swiglu_limit model_type
"""
#: Types of model that do so whatever the file says, or whose class has a default.
FIXED = {
    ("bailing_moe_v2", "norm_topk_prob"),
    ("minimax_m2", "use_qk_norm"),
    ("minimax_m3", "use_qk_norm"),
    ("minimax_m3", "n_shared_experts"),
    ("minimax_m3", "moe_intermediate_size"),  # its class has `intermediate_size` alone
    ("minimax_m3", "first_k_dense_replace"),  # as the file marks
    ("nemotron_h", "num_hidden_layers"),  # as many as it lists
    ("nemotron_h", "partial_rotary_factor"),  # of no layer
} | {(kind, key) for kind, rules in FAMILIES.items() for key in rules.defaults}
#: Several spellings of these stand side by side in some files.
DOUBLE = {
    ("gpt_oss", "num_experts_per_tok"),
    *(("minimax_m3", key) for key in ("partial_rotary_factor", "rotary_dim")),
}


def modern(fields: dict) -> dict:
    """Write the rotation as transformers 5 does."""
    fields = dict(fields)
    if "rope_parameters" in fields:
        return fields
    rules = fields.pop("rope_scaling", None) or {"rope_type": "default"}
    rules = {"rope_type" if key == "type" else key: value for key, value in rules.items()}
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in fields:
            rules[key] = fields.pop(key)
    if FAMILIES[fields["model_type"]].has_local_rotation:
        rules = {"full_attention": rules}
    return fields | {"rope_parameters": rules}


@given(data=st.data(), name=st.sampled_from(sorted(FIELDS)), is_modern=st.booleans())
def test_every_spelling_means_the_same(data, name, is_modern):
    fields = dict(FIELDS[name])
    for key, others in SPELLINGS.items():
        if key in FIELDS[name] and key in fields:
            spelling = data.draw(st.sampled_from((key, *others)), label=key)
            if spelling not in fields:
                fields[spelling] = fields.pop(key)
    assert from_hf(modern(fields) if is_modern else fields) == from_hf(FIELDS[name])


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_a_key_of_the_rotation_may_stay_outside_it(name):
    fields = FIELDS[name]
    rules = modern(fields)["rope_parameters"]
    for key in {"rope_theta", "partial_rotary_factor"} & set(fields):
        rest = {other: value for other, value in rules.items() if other != key}
        old = modern(fields) | {key: fields[key]}
        assert from_hf(old | {"rope_parameters": rest}) == from_hf(fields)
        assert from_hf(old) == from_hf(fields)
        with pytest.raises(ConfigError, match=f"key {key!r} must be"):
            from_hf(old | {key: fields[key] / 2})


def test_a_llama_file_of_before_the_key_rotates_as_its_code_did():
    # The released files of Llama 2 have no `rope_theta`; the code that they came with had 10000.
    fields = {key: v for key, v in FIELDS["llama-2-70b"].items() if key != "rope_theta"}
    assert from_hf(fields).rope.theta == 10_000.0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attn_implementation", "eager"),
        ("_attn_implementation_internal", "sdpa"),
        ("_experts_implementation", "grouped_mm"),
        ("_commit_hash", "0" * 40),
        ("keys_to_ignore_at_inference", ["past_key_values"]),
        ("trust_remote_code", True),
        ("unsloth_fixed", True),
    ],
)
def test_how_a_model_was_run_or_stored_says_nothing(key, value):
    assert from_hf(FIELDS["qwen3-32b"] | {key: value}) == from_hf(FIELDS["qwen3-32b"])


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_a_needed_key_that_is_gone_is_named(name):
    fields = FIELDS[name]
    kind = fields["model_type"]
    for key in _NEEDED.split():
        if fields.get(key) is None or (kind, key) in FIXED | DOUBLE:
            continue
        rest = {other: value for other, value in fields.items() if other != key}
        words = {key, *SPELLINGS.get(key, ())}
        if key == "rotary_dim":
            words.add("partial_rotary_factor")
        with pytest.raises(ConfigError) as problem:
            from_hf(rest)
        assert any(f"key {word!r} must be" in str(problem.value) for word in words), key


@given(
    name=st.sampled_from(sorted(FIELDS)),
    key=st.text(string.ascii_lowercase + "_", min_size=3).map(lambda key: f"x{key}_dim"),
    value=st.integers(min_value=1) | st.floats(min_value=1e-3, allow_nan=False) | st.just(True),
)
def test_an_unknown_number_is_refused_by_name(name, key, value):
    with pytest.raises(ConfigError, match=rf"key '{key}' = .* is not known"):
        from_hf(FIELDS[name] | {key: value})
    scaling = FIELDS[name].get("rope_scaling")
    if scaling:
        with pytest.raises(ConfigError, match=rf"rope_scaling: key '{key}' = .* is not known"):
            from_hf(FIELDS[name] | {"rope_scaling": scaling | {key: value}})


@given(value=st.sampled_from([None, False, 0, "", [], {}]))
def test_an_unknown_key_that_is_off_says_nothing(value):
    assert from_hf(FIELDS["qwen3-32b"] | {"index_topk": value}) == from_hf(FIELDS["qwen3-32b"])


@given(
    layers=st.integers(1, 200),
    width=st.integers(1, 512).map(lambda n: 64 * n),
    kv_heads=st.integers(1, 16),
    per_kv=st.integers(1, 16),
    head=st.integers(1, 128).map(lambda n: 2 * n),
    experts=st.integers(2, 512),
    expert_width=st.integers(1, 4096),
)
def test_any_mixture_counts_as_by_hand(
    layers, width, kv_heads, per_kv, head, experts, expert_width
):
    sizes = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": kv_heads * per_kv,
        "num_key_value_heads": kv_heads,
        "head_dim": head,
        "num_experts": experts,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": expert_width,
        "max_window_layers": layers,
    }
    cfg = from_hf(FIELDS["qwen3-235b-a22b"] | sizes)
    projections = width * head * kv_heads * (2 * per_kv + 2) + 2 * head
    mixture = width * experts + 3 * width * expert_width * experts
    vocabulary = 2 * cfg.vocab_size * width + width
    assert n_parameters(cfg) == layers * (projections + mixture + 2 * width) + vocabulary
