"""Kimi K3: attention residuals, SiTU, experts in a narrower space, and MXFP4 as it packs it."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from released_configs import hub_fields
from tiny_models import TINY, checkpoint

from lpu_jax.errors import ConfigError, WeightsError
from lpu_jax.numerics.quantized import QuantizedArray
from lpu_jax.numerics.schemes import MXFP4
from models.config import MlaConfig, ModelConfig, RecurrentConfig, Situ
from models.depth import STATES, states_of
from models.hf_config import from_hf
from models.params import block_params, n_active, n_parameters
from models.weights.safetensors import SafetensorsFile
from models.weights.source import from_hf_tensors
from models.weights.stored import dequantised

NAME = "kimi-k3"


def changed(**text: object) -> dict:
    fields = hub_fields(NAME)
    return fields | {"text_config": fields["text_config"] | text}


def recurrence(**keys: object) -> dict:
    part = hub_fields(NAME)["text_config"]["linear_attn_config"]
    return changed(linear_attn_config=part | keys)


def read() -> ModelConfig:
    return from_hf(hub_fields(NAME))


def stored(name: str) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """The configuration and the text tensors of a tiny checkpoint."""
    file = SafetensorsFile(TINY / name / "model.safetensors")
    tensors = {name.removeprefix("language_model."): file[name].read() for name in file}
    return checkpoint(name).weights.config, tensors


def test_sizes_and_rules_are_those_of_its_file() -> None:
    cfg = read()
    attends = [layer for layer in range(93) if layer not in cfg.recurrent_layers]
    assert attends == [*range(3, 92, 4), 92]
    assert cfg.unrotated_layers == tuple(attends)
    assert cfg.recurrent == RecurrentConfig(
        n_key_heads=96,
        n_value_heads=96,
        key_dim=128,
        value_dim=128,
        taps=4,
        channel_rank=128,
        is_gate_full=True,
        decay_bound=-5.0,
    )
    attention, moe = cfg.attention, cfg.moe
    assert isinstance(attention, MlaConfig)
    assert (attention.q_lora_rank, attention.gated, attention.gates_values) == (1536, False, True)
    assert attention.latent_norm_eps == cfg.norm_eps == 1e-5
    assert (moe.n_experts, moe.top_k, moe.n_shared, moe.d_latent) == (896, 16, 2, 3584)
    assert (moe.latent_norm, moe.n_dense_layers, moe.n_groups) == (True, 1, 1)
    assert cfg.situ == moe.situ == Situ(limit=4.0, up_limit=25.0)
    assert (cfg.released_format, cfg.released_roles) == ("mxfp4", None)
    assert (cfg.residual_block, cfg.n_states, cfg.hidden_width) == (12, 9, 9 * 7168)


def test_parameters_are_those_of_the_published_index() -> None:
    """2,779.48 B without the vision tower: the layer sum written out, for no class counts it."""
    d, heads, head, vocab, width, latent = 7168, 96, 128, 163_840, 3072, 3584
    n = heads * head
    kda = 5 * d * n + 3 * 4 * n + d * head + head * n + d * heads + heads + n + head
    mla = (
        d * 1536 + 1536 + 1536 * heads * 192 + d * (512 + 64) + 512 + 512 * heads * 256
        + 2 * d * n
    )  # fmt: skip
    around = 6 * d  # a norm of each block, and a norm and a query of what it is given
    expert = 3 * latent * width
    mixture = d * 896 + 896 + 2 * d * latent + latent + 3 * d * 2 * width
    ends = 2 * vocab * d + 3 * d
    total = 69 * kda + 24 * mla + 93 * around + 3 * d * 33_792 + 92 * (mixture + 896 * expert)
    assert n_parameters(read()) == total + ends == 2_779_484_476_000
    used = total + ends - 92 * 880 * expert
    assert n_active(read(), include_embedding=True) == used == 105_364_017_760
    assert n_active(read()) == used - vocab * d


def test_a_block_reads_the_sums_that_are_there() -> None:
    """States by hand: `KimiDecoderLayer` of vLLM, whose running sum is the last of its sources."""
    cfg = read()
    for layer, attention, mlp in (
        (0, (0, 1), (1, 1)),  # the embedding alone, then the first sum beside it
        (1, (1, 1), (1, 1)),
        (11, (1, 1), (1, 1)),
        (12, (1, 2), (2, 2)),
        (92, (8, 8), (8, 8)),
    ):
        assert tuple(states_of(cfg, "recurrent", layer)) == attention
        assert tuple(states_of(cfg, "moe", layer)) == mlp
    spec = block_params(cfg, "moe")[STATES]
    assert (spec.n_values, spec.shape) == (0, (2,))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (changed(mla_use_output_gate=False), "'mla_use_output_gate' must be true"),
        (changed(mla_use_nope=False), "'mla_use_nope' must be true"),
        # Left out, its class takes other values: no gate, rotation, SiLU, a gate through a rank.
        (changed(mla_use_output_gate=None), "'mla_use_output_gate' must be true.*got None"),
        (changed(mla_use_nope=None), "'mla_use_nope' must be true.*got None"),
        (changed(hidden_act=None), "'hidden_act' must be \"situ\".*got None"),
        (recurrence(use_full_rank_gate=None), "'use_full_rank_gate' must be true.*got None"),
        (changed(routed_expert_hidden_size=None), "'routed_expert_hidden_size' must be a width"),
        (changed(hidden_act="silu"), "'hidden_act' must be \"situ\""),
        (changed(activation_situ_beta=None), "'activation_situ_beta' must be a number"),
        (changed(routed_scaling_factor=2.0), "'routed_scaling_factor' must be 1.0"),
        (changed(attn_res_block_size=-1), "'attn_res_block_size' must be a whole number"),
        (recurrence(use_full_rank_gate=False), "'use_full_rank_gate' must be true"),
        (recurrence(gate_lower_bound=5.0), "'gate_lower_bound' must be a number from -"),
    ],
)
def test_what_is_not_modelled_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_hf(fields)


def test_kimi_linear_has_nothing_of_it() -> None:
    fields = hub_fields("kimi-linear-48b-a3b")
    part = fields["linear_attn_config"] | {"gate_lower_bound": -5.0}
    with pytest.raises(ConfigError, match=r"'gate_lower_bound' = -5\.0 is not known"):
        from_hf(fields | {"linear_attn_config": part})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"residual_block": 0}, "residual_block must be above 0"),
        ({"activation": "silu"}, "the activation situ, and no other, goes with a Situ"),
        ({"situ": None}, "the activation situ, and no other, goes with a Situ"),
        ({"single_blocks": ("dense",) * 93}, "single_blocks alone must say"),
    ],
)
def test_a_model_that_contradicts_itself_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(read(), **change)


def test_residuals_of_grouped_attention_are_refused() -> None:
    grouped = from_hf(hub_fields("llama-3.1-8b"))
    with pytest.raises(ConfigError, match="residual_block is about models of latent attention"):
        replace(grouped, residual_block=4)


def test_packed_experts_keep_their_codes_and_scales() -> None:
    """Bit for bit: nibbles are taken apart here, the earlier code from the lower bits."""
    file = SafetensorsFile(TINY / "kimi_k3_mxfp4" / "model.safetensors")
    stem = "language_model.model.layers.1.block_sparse_moe.experts.2."
    down = checkpoint("kimi_k3_mxfp4").weights.expert(1, 2)["down"]
    assert isinstance(down, QuantizedArray)
    assert down.scheme == MXFP4
    packed, scales = (file[f"{stem}w2.weight_{part}"].read() for part in ("packed", "scale"))
    codes = np.empty((len(packed), 2 * packed.shape[1]), np.uint8)
    codes[:, 0::2], codes[:, 1::2] = packed & 15, packed >> 4
    np.testing.assert_array_equal(np.asarray(down.codes).view(np.uint8), codes.T)
    np.testing.assert_array_equal(np.asarray(down.scales).view(np.uint8), scales.T)
    values = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    exact = values * 2.0 ** (np.repeat(scales, 32, axis=1).astype(np.float32) - 127)
    np.testing.assert_array_equal(dequantised(down), exact.T)


@pytest.mark.parametrize("beside", ["_scale_2", "_shape", "_scale_inv", ""])
def test_what_contradicts_packed_codes_is_refused(beside: str) -> None:
    config, tensors = stored("kimi_k3_mxfp4")
    matrix = "model.layers.1.block_sparse_moe.experts.0.w1.weight"
    tensors[matrix + beside] = np.ones((), np.float32)
    source = from_hf_tensors(config, tensors)
    with pytest.raises(WeightsError, match=rf"w1\.weight{beside}' does not go with"):
        source.expert(1, 0)


def test_packed_codes_of_another_width_are_refused() -> None:
    config, tensors = stored("kimi_k3_mxfp4")
    name = "model.layers.1.block_sparse_moe.experts.0.w1.weight_packed"
    tensors[name] = tensors[name][:, 1:]
    source = from_hf_tensors(config, tensors)
    with pytest.raises(WeightsError, match=r"w1\.weight_packed' must have shape \(32, 16\)"):
        source.expert(1, 0)


def test_fadings_are_read_in_both_shapes() -> None:
    """Newer files hold a vector, older ones `[1, 1, heads, 1]`: the loader of vLLM takes both."""
    config, tensors = stored("kimi_k3")
    old = tensors | {
        name: values.reshape(1, 1, -1, 1)
        for name, values in tensors.items()
        if name.endswith("A_log")
    }
    new, before = (from_hf_tensors(config, each).block("recurrent", 0) for each in (tensors, old))
    np.testing.assert_array_equal(new["fading"], before["fading"])
