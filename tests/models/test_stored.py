"""Quantised matrices of released files: kept bit for bit, or decoded as their definition says."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpu_jax.errors import WeightsError
from lpu_jax.numerics import quantized
from lpu_jax.numerics.formats import FP16
from lpu_jax.numerics.quantized import QuantizedArray
from lpu_jax.numerics.schemes import FP8_BLOCK128, INT4_GROUP32, MXFP4
from models.config import GqaConfig, MlaConfig, ModelConfig, MoeConfig
from models.params import block_params
from models.policy import POLICIES
from models.rope import RopeConfig
from models.weights.source import HfTensors, from_hf_tensors
from models.weights.stored import dequantised, one_of_batch
from sharding.run.load import store_block, store_expert

RNG = np.random.default_rng(1)
FP8 = ml_dtypes.float8_e4m3fn
BF16 = ml_dtypes.bfloat16
#: Values of the sixteen e2m1 codes, by the table of OCP Microscaling v1.0.
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
E2M1 += [-value for value in E2M1]

#: Two layers, the second a mixture; heads whose parts are whole blocks of 128.
DEEPSEEK = ModelConfig(
    name="two-blocks",
    family="deepseek",
    n_layers=2,
    d_model=160,
    d_ff=200,
    vocab_size=48,
    max_position=64,
    norm_eps=1e-6,
    tie_embeddings=False,
    attention=MlaConfig(
        n_heads=2,
        q_lora_rank=96,
        kv_lora_rank=144,
        nope_head_dim=128,
        rope_head_dim=64,
        v_head_dim=128,
    ),
    rope=RopeConfig(theta=1e4, dim=64, interleaved=True),
    moe=MoeConfig(n_experts=2, top_k=1, n_shared=1, d_expert=96, n_dense_layers=1),
)
GPT_OSS = ModelConfig(
    name="one-mixture",
    family="gpt_oss",
    n_layers=1,
    d_model=64,
    d_ff=96,
    vocab_size=48,
    max_position=64,
    norm_eps=1e-5,
    tie_embeddings=False,
    attention=GqaConfig(n_heads=2, n_kv_heads=1, head_dim=32),
    rope=RopeConfig(theta=1e4, dim=32, interleaved=False),
    moe=MoeConfig(
        n_experts=3,
        top_k=1,
        n_shared=0,
        d_expert=96,
        scoring="softmax_after_top_k",
        correction_bias=False,
        expert_bias=True,
    ),
)


def fp8(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Random codes without NaN, and a scale per block."""
    codes = RNG.integers(0, 256, (rows, columns), dtype=np.uint8)
    codes[codes & 0x7F == 0x7F] = 0x7E
    blocks = (-(-rows // 128), -(-columns // 128))
    return codes.view(FP8), RNG.uniform(0.5, 2, blocks).astype(np.float32)


def fp8_values(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The format's definition: each value times the scale of its block."""
    rows, columns = np.indices(codes.shape)
    values: np.ndarray = codes.astype(np.float32) * scales[rows // 128, columns // 128]
    return values


def with_fp8(tensors: dict[str, np.ndarray], name: str, rows: int, columns: int) -> np.ndarray:
    codes, scales = fp8(rows, columns)
    tensors[f"{name}.weight"], tensors[f"{name}.weight_scale_inv"] = codes, scales
    return fp8_values(codes, scales)


def pack_int4(values: np.ndarray) -> np.ndarray:
    """Eight numbers from -8 to 7 in a 32-bit word, the first in the lowest bits, in Python."""
    rows = []
    for row in values.tolist():
        row += [-8] * (-len(row) % 8)
        words = [
            sum((value + 8) << (4 * i) for i, value in enumerate(row[start : start + 8]))
            for start in range(0, len(row), 8)
        ]
        rows.append([word - (1 << 32) if word >= 1 << 31 else word for word in words])
    return np.array(rows, np.int32)


def with_int4(
    tensors: dict[str, np.ndarray],
    name: str,
    rows: int,
    columns: int,
    scale_type: type = BF16,
    group: int = 32,
) -> np.ndarray:
    values = RNG.integers(-8, 8, (rows, columns))
    scales = RNG.uniform(0.1, 1, (rows, columns // group)).astype(scale_type)
    tensors[f"{name}.weight_packed"] = pack_int4(values)
    tensors[f"{name}.weight_scale"] = scales
    tensors[f"{name}.weight_shape"] = np.array([rows, columns], np.int32)
    return values.astype(np.float32) * np.repeat(scales.astype(np.float32), group, axis=1)


def expert(kind: str, **options: object) -> tuple[HfTensors, dict[str, np.ndarray]]:
    """An expert of layer 1 stored as fp8 or int4, and its values `[out, in]`."""
    tensors: dict[str, np.ndarray] = {}
    make = {"fp8": with_fp8, "int4": with_int4}[kind]
    prefix = "model.layers.1.mlp.experts.0."
    sizes = {"gate": (96, 160), "up": (96, 160), "down": (160, 96)}
    values = {
        name: make(tensors, f"{prefix}{name}_proj", *shape, **options)
        for name, shape in sizes.items()
    }
    return from_hf_tensors(DEEPSEEK, tensors), values


@pytest.mark.parametrize("kind", ["fp8", "int4"])
def test_an_expert_has_the_values_of_its_file(kind):
    source, values = expert(kind)
    found = source.expert(1, 0)
    scheme = {"fp8": FP8_BLOCK128, "int4": INT4_GROUP32}[kind]
    assert all(isinstance(weight, QuantizedArray) for weight in found.values())
    assert all(weight.scheme == scheme for weight in found.values())
    gate_up, down = dequantised(found["gate_up"]), dequantised(found["down"])
    np.testing.assert_array_equal(gate_up[:, 0], values["gate"].T, strict=True)
    np.testing.assert_array_equal(gate_up[:, 1], values["up"].T, strict=True)
    np.testing.assert_array_equal(down, values["down"].T, strict=True)


@pytest.mark.parametrize("kind", ["fp8", "int4"])
def test_columns_of_a_narrow_head_are_those_of_the_whole(kind):
    tensors: dict[str, np.ndarray] = {"model.norm.weight": np.ones(160, np.float32)}
    add = with_fp8 if kind == "fp8" else with_int4
    values = add(tensors, "lm_head", 48, 160)
    source = from_hf_tensors(DEEPSEEK, tensors)
    tokens = np.array([5, 6, 47, 0])
    np.testing.assert_array_equal(source.of_tokens("head", tokens)["out"], values[tokens].T)


@pytest.mark.parametrize("kind", ["fp8", "int4"])
def test_released_codes_are_stored_without_a_second_rounding(kind):
    source, _ = expert(kind)
    released = source.expert(1, 0)
    stored = store_expert(source, 1, 0, POLICIES[kind])
    for name, weight in stored.items():
        quantized.check(
            replace(
                weight,
                codes=weight.codes.reshape(weight.codes.shape[0], -1),
                scales=weight.scales.reshape(weight.scales.shape[0], -1),
            )
        )
        assert weight.codes.tobytes() == released[name].codes.tobytes()
        assert weight.scales.tobytes() == released[name].scales.tobytes()


def test_other_formats_store_the_values_of_the_codes():
    source, values = expert("int4")
    stored = store_expert(source, 1, 0, POLICIES["fp16"])
    np.testing.assert_array_equal(stored["down"], values["down"].T.astype(np.float16), strict=True)
    plain = store_expert(source, 1, 0, POLICIES["float32"])
    np.testing.assert_array_equal(plain["down"], values["down"].T, strict=True)


def test_the_lowest_int4_code_counts_minus_eight_at_the_matrix_unit():
    """Our own int4 stops at -7; released files may hold -8."""
    weight = QuantizedArray(
        codes=jnp.full((32, 1), -8, jnp.int8),
        scales=jnp.full((1, 1), 0.5, BF16),
        scheme=INT4_GROUP32,
    )
    assert (dequantised(weight) == -4).all()
    assert (np.asarray(jax.jit(quantized.widen)(weight)) == -4).all()


@pytest.mark.parametrize("scale_type", [np.float16, np.float32])
def test_int4_scales_that_are_not_bf16_keep_their_values(scale_type):
    source, values = expert("int4", scale_type=scale_type)
    found = source.expert(1, 0)["down"]
    assert found.scheme != INT4_GROUP32
    np.testing.assert_array_equal(dequantised(found), values["down"].T)
    stored = store_expert(source, 1, 0, POLICIES["int4"])["down"]
    assert stored.scheme == INT4_GROUP32  # rounded again: the chip's int4 has bf16 scales
    assert np.abs(dequantised(stored) - values["down"].T).max() > 0
    only_scales = replace(INT4_GROUP32, scale_format=FP16)
    assert (found.scheme == only_scales) == (scale_type is np.float16)


def test_16_bit_scales_that_bf16_holds_exactly_become_bf16():
    source, _ = expert("int4")
    exact = dict(source._tensors)
    for name in list(exact):
        if name.endswith("_scale"):
            exact[name] = exact[name].astype(np.float32)
    found = from_hf_tensors(DEEPSEEK, exact).expert(1, 0)["down"]
    assert found.scheme == INT4_GROUP32


def test_int4_groups_of_other_lengths_are_decoded():
    source, values = expert("int4", group=16)
    found = source.expert(1, 0)["down"]
    assert found.scheme.block_rows == 16
    np.testing.assert_array_equal(dequantised(found), values["down"].T)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40))
def test_fp8_blocks_may_be_cut_by_the_end_of_a_matrix(n_latent, n_rows):
    """Random small heads: blocks that cross heads are decoded, others kept; values never differ."""
    mla = replace(
        DEEPSEEK.attention, kv_lora_rank=n_latent, v_head_dim=n_rows, nope_head_dim=128 - n_rows
    )
    cfg = replace(DEEPSEEK, attention=mla)
    tensors: dict[str, np.ndarray] = {}
    values = latent_attention(cfg, tensors)
    check_latent_attention(cfg, tensors, values)


def latent_attention(cfg: ModelConfig, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Make the matrices of layer 0 in fp8; returns their values `[out, in]`."""
    mla = cfg.attention
    prefix = "model.layers.0.self_attn."
    shapes = {
        "q_a_proj": (mla.q_lora_rank, cfg.d_model),
        "kv_a_proj_with_mqa": (mla.kv_lora_rank + mla.rope_head_dim, cfg.d_model),
        "q_b_proj": (mla.n_heads * mla.query_head_dim, mla.q_lora_rank),
        "kv_b_proj": (mla.n_heads * (mla.nope_head_dim + mla.v_head_dim), mla.kv_lora_rank),
        "o_proj": (cfg.d_model, mla.n_heads * mla.v_head_dim),
    }
    tensors["model.layers.0.input_layernorm.weight"] = np.ones(cfg.d_model, np.float32)
    tensors[f"{prefix}q_a_layernorm.weight"] = np.ones(mla.q_lora_rank, np.float32)
    tensors[f"{prefix}kv_a_layernorm.weight"] = np.ones(mla.kv_lora_rank, np.float32)
    return {name: with_fp8(tensors, prefix + name, *shape) for name, shape in shapes.items()}


def check_latent_attention(
    cfg: ModelConfig, tensors: dict[str, np.ndarray], values: dict[str, np.ndarray]
) -> dict[str, object]:
    mla = cfg.attention
    found = from_hf_tensors(cfg, tensors).block("attention", 0)
    a = np.concatenate((values["q_a_proj"], values["kv_a_proj_with_mqa"]))
    np.testing.assert_array_equal(dequantised(found["a"]), a.T)
    q_b, o = dequantised(found["q_b"]), dequantised(found["o"])
    k_b, v_b = dequantised(found["k_b"]), dequantised(found["v_b"])
    n_rows = mla.nope_head_dim + mla.v_head_dim
    for head in range(mla.n_heads):
        q_rows = slice(head * mla.query_head_dim, (head + 1) * mla.query_head_dim)
        np.testing.assert_array_equal(q_b[:, head], values["q_b_proj"][q_rows].T)
        rows = values["kv_b_proj"][head * n_rows : (head + 1) * n_rows]
        np.testing.assert_array_equal(k_b[head], rows[: mla.nope_head_dim])
        np.testing.assert_array_equal(v_b[head], rows[mla.nope_head_dim :].T)
        columns = slice(head * mla.v_head_dim, (head + 1) * mla.v_head_dim)
        np.testing.assert_array_equal(o[head], values["o_proj"][:, columns].T)
    return found


def test_fp8_latent_attention_is_kept_whole_where_blocks_lie_in_heads():
    tensors: dict[str, np.ndarray] = {}
    found = check_latent_attention(DEEPSEEK, tensors, latent_attention(DEEPSEEK, tensors))
    matrices = {name for name in found if not name.endswith("norm")}
    assert matrices == {"a", "q_b", "k_b", "v_b", "o"}
    assert all(isinstance(found[name], QuantizedArray) for name in matrices)
    stored = store_block(from_hf_tensors(DEEPSEEK, tensors), "attention", 0, POLICIES["fp8"])
    for name in matrices:
        assert stored.weights[name].codes.tobytes() == found[name].codes.tobytes()


def test_a_block_that_two_parts_of_a_head_share_is_decoded():
    """Heads of 128 + 64 rows: keys of the second begin in the middle of a block of rows."""
    cfg = replace(DEEPSEEK, attention=replace(DEEPSEEK.attention, v_head_dim=64))
    tensors: dict[str, np.ndarray] = {}
    found = check_latent_attention(cfg, tensors, latent_attention(cfg, tensors))
    assert not isinstance(found["k_b"], QuantizedArray)
    assert isinstance(found["v_b"], QuantizedArray)


def test_the_expanded_form_has_the_same_rows():
    tensors: dict[str, np.ndarray] = {}
    values = latent_attention(DEEPSEEK, tensors)["kv_b_proj"]
    cfg = replace(DEEPSEEK, attention=replace(DEEPSEEK.attention, form="expanded"))
    kv_b = from_hf_tensors(DEEPSEEK, tensors).with_config(cfg).block("attention", 0)["kv_b"]
    assert kv_b.shape == block_params(cfg, "attention")["kv_b"].shape
    np.testing.assert_array_equal(dequantised(kv_b), values.reshape(2, 256, 144).transpose(2, 0, 1))


@pytest.mark.parametrize("shape", [(), (1,), (96, 1)])
def test_fp8_with_a_scale_per_row_or_matrix_is_decoded(shape):
    source, _ = expert("fp8")
    name = "model.layers.1.mlp.experts.0.gate_proj.weight"
    tensors = dict(source._tensors)
    del tensors[f"{name}_scale_inv"]
    scale = RNG.uniform(0.5, 2, shape).astype(BF16)
    tensors[f"{name}_scale"] = np.asarray(scale)
    gate = dequantised(from_hf_tensors(DEEPSEEK, tensors).expert(1, 0)["gate_up"])[:, 0]
    expected = tensors[name].astype(np.float32) * np.asarray(scale).astype(np.float32)
    np.testing.assert_array_equal(gate, expected.T)


def test_power_of_two_scales_of_fp8_are_read_as_numbers():
    source, _ = expert("fp8")
    name = "model.layers.1.mlp.experts.0.down_proj.weight"
    tensors = dict(source._tensors)
    scales = np.array([[120], [129]], np.uint8)  # 2**-7 and 2**2: the code counts from -127
    tensors[f"{name}_scale_inv"] = scales.view(ml_dtypes.float8_e8m0fnu)
    down = from_hf_tensors(DEEPSEEK, tensors).expert(1, 0)["down"]
    assert down.scheme == FP8_BLOCK128
    expected = fp8_values(tensors[name], np.array([[2.0**-7], [4.0]], np.float32))
    np.testing.assert_array_equal(dequantised(down), expected.T)


def gpt_oss_expert() -> tuple[dict[str, np.ndarray], str]:
    prefix, (n, d, f) = "model.layers.0.mlp.experts.", (3, 64, 96)
    random = lambda *shape: RNG.integers(0, 256, shape, dtype=np.uint8)  # noqa: E731
    tensors = {
        f"{prefix}gate_up_proj_blocks": random(n, 2 * f, d // 32, 16),
        f"{prefix}gate_up_proj_scales": RNG.integers(100, 140, (n, 2 * f, d // 32), np.uint8),
        f"{prefix}down_proj_blocks": random(n, d, f // 32, 16),
        f"{prefix}down_proj_scales": RNG.integers(100, 140, (n, d, f // 32), np.uint8),
        f"{prefix}gate_up_proj_bias": RNG.standard_normal((n, 2 * f)).astype(BF16),
        f"{prefix}down_proj_bias": RNG.standard_normal((n, d)).astype(BF16),
    }
    return tensors, prefix


def test_mxfp4_experts_are_read_as_their_definition_says():
    tensors, prefix = gpt_oss_expert()
    source = from_hf_tensors(GPT_OSS, tensors)
    found = source.expert(0, 2)
    gate_up, down = dequantised(found["gate_up"]), dequantised(found["down"])
    assert found["gate_up"].scheme == found["down"].scheme == MXFP4

    def value(part: str, row: int, column: int) -> float:
        byte = tensors[f"{prefix}{part}_blocks"][2, row, column // 32, column % 32 // 2]
        code = byte >> 4 if column % 2 else byte & 15
        return E2M1[code] * 2.0 ** (
            int(tensors[f"{prefix}{part}_scales"][2, row, column // 32]) - 127
        )

    for column in range(64):
        for row in range(0, 192, 5):  # rows alternate: gate, up
            assert gate_up[column, row % 2, row // 2] == value("gate_up_proj", row, column)
    for column in range(96):
        for row in range(0, 64, 3):
            assert down[column, row] == value("down_proj", row, column)
    both = tensors[f"{prefix}gate_up_proj_bias"].astype(np.float32)[2]
    np.testing.assert_array_equal(found["gate_up_bias"], np.stack((both[0::2], both[1::2])))
    stored = store_expert(source, 0, 2, POLICIES["mxfp4-experts"])
    assert stored["gate_up"].codes.tobytes() == found["gate_up"].codes.tobytes()
    assert stored["gate_up"].scales.tobytes() == found["gate_up"].scales.tobytes()


def test_decoding_agrees_with_the_emulator():
    """`quantized.dequantize` shares no code with the decoder of files."""
    tensors, _ = gpt_oss_expert()
    mxfp4 = from_hf_tensors(GPT_OSS, tensors).expert(0, 0)["down"]
    for weight in (mxfp4, expert("fp8")[0].expert(1, 0)["down"]):
        decoded = jax.jit(quantized.dequantize)(jax.tree.map(jnp.asarray, weight))
        np.testing.assert_array_equal(np.asarray(decoded), dequantised(weight), strict=True)


def test_a_plain_fused_expert_is_turned_and_parted():
    tensors, prefix = gpt_oss_expert()
    plain = {name: array for name, array in tensors.items() if name.endswith("bias")}
    plain[f"{prefix}gate_up_proj"] = RNG.standard_normal((3, 64, 192)).astype(BF16)
    plain[f"{prefix}down_proj"] = RNG.standard_normal((3, 96, 64)).astype(BF16)
    found = from_hf_tensors(GPT_OSS, plain).expert(0, 1)
    gate_up = plain[f"{prefix}gate_up_proj"].astype(np.float32)[1]
    np.testing.assert_array_equal(found["gate_up"][:, 0], gate_up[:, 0::2], strict=True)
    np.testing.assert_array_equal(found["gate_up"][:, 1], gate_up[:, 1::2], strict=True)
    np.testing.assert_array_equal(found["down"], plain[f"{prefix}down_proj"].astype(np.float32)[1])


def test_mixed_storage_becomes_plain_numbers():
    source, values = expert("fp8")
    tensors = dict(source._tensors)
    name = "model.layers.1.mlp.experts.0.up_proj.weight"
    del tensors[f"{name}_scale_inv"]
    tensors[name] = values["up"].astype(BF16)
    gate_up = from_hf_tensors(DEEPSEEK, tensors).expert(1, 0)["gate_up"]
    assert gate_up.dtype == np.float32
    np.testing.assert_array_equal(gate_up[:, 0], values["gate"].T)
    np.testing.assert_array_equal(gate_up[:, 1], tensors[name].astype(np.float32).T)


GATE = "model.layers.1.mlp.experts.0.gate_proj.weight"
NAN8 = np.array(0x7F, np.uint8).view(FP8)
FAULTS = {
    "fp8 codes of NaN": ("fp8", "", lambda a: np.full_like(a, NAN8), "holds NaN or infinity"),
    "fp8 scale of NaN": ("fp8", "_scale_inv", lambda a: a * np.nan, "holds NaN or infinity"),
    "fp8 scale too large": ("fp8", "_scale_inv", lambda a: a * 1e37, "holds NaN or infinity"),
    "fp8 scales of other blocks": ("fp8", "_scale_inv", lambda a: a.T, "must have shape"),
    "fp8 scales of integers": ("fp8", "_scale_inv", lambda a: a.astype(int), "must be float16, "),
    "fp8 without scales": ("fp8", "_scale_inv", None, "is missing"),
    "scales of plain numbers": ("fp8", "", lambda a: a.astype(BF16), "stored in another form"),
    "int4 codes of another width": ("int4", "_packed", lambda a: a[:, :10], "must have shape"),
    "int4 codes of bytes": (
        "int4",
        "_packed",
        lambda a: a.astype(np.uint8),
        "stored in another form",
    ),
    "int4 scale of infinity": ("int4", "_scale", lambda a: a * np.inf, "holds NaN or infinity"),
    "int4 groups that do not fit": ("int4", "_scale", lambda a: a[:, :3], "do not divide its 160"),
    "int4 of another shape": ("int4", "_shape", lambda a: a[::-1], r"must hold \(96, 160\), got"),
    "int4 without its shape": ("int4", "_shape", None, "is missing"),
    "int4 without scales": ("int4", "_scale", None, "is missing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_tensor_is_refused_by_name(fault):
    kind, suffix, change, message = FAULTS[fault]
    tensors = dict(expert(kind)[0]._tensors)
    with np.errstate(all="ignore"):
        if change is None:
            del tensors[GATE + suffix]
        else:
            tensors[GATE + suffix] = np.ascontiguousarray(change(tensors[GATE + suffix]))
    source = from_hf_tensors(DEEPSEEK, tensors, where="some.safetensors")
    with pytest.raises(WeightsError, match=message) as caught:
        source.expert(1, 0)
    assert str(caught.value).startswith("some.safetensors: tensor 'model.layers.1.mlp.experts.0.")


def test_a_matrix_stored_twice_is_refused():
    tensors = dict(expert("int4")[0]._tensors)
    tensors[GATE] = np.zeros((96, 160), np.float32)
    with pytest.raises(WeightsError, match=r"gate_proj\.weight' does not go with .*weight_packed'"):
        from_hf_tensors(DEEPSEEK, tensors).expert(1, 0)


def test_an_mxfp4_scale_of_nan_is_refused():
    tensors, prefix = gpt_oss_expert()
    tensors[f"{prefix}down_proj_scales"][1, 5, 0] = 255
    source = from_hf_tensors(GPT_OSS, tensors)
    source.expert(0, 0)
    with pytest.raises(WeightsError, match=r"down_proj_scales' holds NaN or infinity"):
        source.expert(0, 1)


def test_zero_points_are_refused_as_tensors_nobody_reads():
    tensors = dict(expert("int4")[0]._tensors)
    tensors[f"{GATE}_zero_point"] = np.zeros((12, 5), np.int32)
    with pytest.raises(WeightsError, match=r"weight_zero_point' is not part of a deepseek model"):
        from_hf_tensors(DEEPSEEK, tensors)


def test_one_of_a_batch_keeps_the_rest_of_a_specification():
    spec = block_params(DEEPSEEK, "moe")["gate_up"]
    one = one_of_batch(spec)
    assert (one.shape, one.batch, one.rows) == ((160, 2, 96), 0, 1)
