"""Random weights: reproducible from their name alone, all different, of the right spread."""

import dataclasses
import hashlib
import itertools
from statistics import NormalDist

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpu_jax.errors import ConfigError, WeightsError
from models import zoo
from models.config import MlaConfig, MoeConfig
from models.params import block_params
from models.reference import reference_block
from models.rope import RopeConfig
from models.weights.synthetic import NORM_RANGE, SyntheticWeights

TINY = dataclasses.replace(
    zoo.model("deepseek-v3"),
    name="tiny",
    n_layers=3,
    d_model=64,
    d_ff=96,
    vocab_size=128,
    attention=MlaConfig(
        n_heads=4,
        q_lora_rank=24,
        kv_lora_rank=16,
        nope_head_dim=8,
        rope_head_dim=8,
        v_head_dim=8,
    ),
    rope=RopeConfig(theta=1e4, dim=8, interleaved=True),
    moe=MoeConfig(n_experts=8, top_k=2, n_shared=1, d_expert=32, n_dense_layers=1),
)


def everything(weights: SyntheticWeights) -> dict[str, np.ndarray]:
    blocks = [("embed", 0), ("head", 0), ("dense", 0), ("moe", 1), ("moe", 2)]
    blocks += [("attention", layer) for layer in range(3)]
    arrays = {
        f"{kind}/{layer}/{name}": array
        for kind, layer in blocks
        for name, array in weights.block(kind, layer).items()
    }
    for layer, expert_id in itertools.product((1, 2), range(8)):
        for name, array in weights.expert(layer, expert_id).items():
            arrays[f"expert/{layer}/{name}/{expert_id}"] = array
    return arrays


def test_values_do_not_depend_on_what_was_asked_before():
    first = everything(SyntheticWeights(TINY, seed=7))
    fresh = SyntheticWeights(TINY, seed=7)
    np.testing.assert_array_equal(fresh.expert(2, 5)["down"], first["expert/2/down/5"], strict=True)
    np.testing.assert_array_equal(
        fresh.block("moe", 1)["router"], first["moe/1/router"], strict=True
    )


# SHA-256 of little-endian float32 bytes, printed by the program once: results name a seed.
PINNED = {
    "embed": "4e933c12ad03f2bd71069bf8745c786e67bbf79fc385282620dbc040ca9fe50c",
    "expert": "8b6d913e7a5ea2de7e6cf7036446167e21801d89fd793beeafb1cec82a48d91e",
    "norm": "ed3e9ccf5f8dfc9899bf93cd8df9a1f38ebb20874e81244542cd8588d26009a2",
}


def test_pinned_values_do_not_move():
    """Guards the labels, the generator's raw stream and the table of quantiles."""
    weights = SyntheticWeights(TINY, seed=0)
    found = {
        "embed": weights.block("embed")["table"],
        "expert": weights.expert(1, 3)["down"],
        "norm": weights.block("attention", 2)["norm"],
    }
    hashes = {
        name: hashlib.sha256(array.astype("<f4").tobytes()).hexdigest()
        for name, array in found.items()
    }
    assert hashes == PINNED


def test_values_are_the_quantile_of_their_sixteen_bits():
    """One row of the embedding again, by the definition: words of PCG64DXSM from the name's hash.

    1e-6 relative: our quantiles are scaled to the exact spread and rounded to float32.
    """
    row, width = 37, TINY.d_model
    digest = hashlib.blake2b(b"5/embed/0/table/None", digest_size=16).digest()
    draws = np.random.PCG64DXSM(int.from_bytes(digest, "little")).random_raw(1 << 14)
    words = [int(draws[i // 4]) >> (16 * (i % 4)) & 0xFFFF for i in range(4 * len(draws))]
    quantiles = [NormalDist().inv_cdf((i + 0.5) / 65536) for i in range(65536)]
    spread = np.sqrt(np.mean(np.square(quantiles)))
    std = block_params(TINY, "embed")["table"].std
    expected = [std * quantiles[word] / spread for word in words[row * width : (row + 1) * width]]
    found = SyntheticWeights(TINY, seed=5).of_tokens("embed", np.array([row]))["table"][0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@settings(deadline=None, max_examples=30)
@given(tokens=st.lists(st.integers(0, 127), max_size=40), tied=st.booleans())
def test_a_part_is_that_part_of_the_whole(tokens, tied):
    weights = SyntheticWeights(dataclasses.replace(TINY, tie_embeddings=tied), seed=3)
    ids = np.array(tokens, np.int64)
    embed, head = weights.block("embed"), weights.block("head")
    np.testing.assert_array_equal(
        weights.of_tokens("embed", ids)["table"], embed["table"][ids], strict=True
    )
    part = weights.of_tokens("head", ids)
    np.testing.assert_array_equal(part["out"], head["out"][:, ids], strict=True)
    np.testing.assert_array_equal(part["norm"], head["norm"], strict=True)


@pytest.mark.parametrize("first", [0, 1, 65535, 65537, 200_000])
def test_a_part_that_starts_anywhere_is_that_part(first):
    """Rows of 3 values: no row starts where a chunk or a draw of four words starts."""
    odd = dataclasses.replace(TINY, d_model=3, vocab_size=1 << 18)
    weights = SyntheticWeights(odd, seed=1)
    whole = weights.of_tokens("embed", np.arange(first + 30_000))["table"]
    part = weights.of_tokens("embed", np.arange(first, first + 30_000))["table"]
    np.testing.assert_array_equal(part, whole[first:], strict=True)


def test_values_are_normal_and_independent():
    """A million values against the normal distribution, and against their neighbours.

    Bounds are five standard errors of the estimate; 0.0023 is the Kolmogorov-Smirnov distance that
    a million true normals exceed once in fifty thousand times.
    """
    weights = SyntheticWeights(dataclasses.replace(TINY, d_model=1000, vocab_size=1000))
    table = weights.block("embed")["table"]
    values = (
        np.sort(table.ravel().astype(np.float64))
        / block_params(weights.config, "embed")["table"].std
    )
    n = len(values)
    assert abs(values.mean()) < 5 / np.sqrt(n)
    assert abs(values.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs(np.mean(values**3)) < 5 * np.sqrt(15 / n)
    assert abs(np.mean(values**4) - 3) < 5 * np.sqrt(96 / n)
    cdf = np.array([NormalDist().cdf(value) for value in values[::100]])
    assert np.max(np.abs(cdf - (np.arange(0, n, 100) + 0.5) / n)) < 0.0023
    assert 4 < values[-1] < 4.4  # no value is beyond the last quantile
    flat = table.ravel().astype(np.float64)
    for step in (1, 2, 4, 1000):
        assert abs(np.corrcoef(flat[:-step], flat[step:])[0, 1]) < 5 / np.sqrt(n)


def test_no_two_tensors_are_equal():
    arrays = everything(SyntheticWeights(TINY, seed=7))
    starts = {name: array.ravel()[:8].tobytes() for name, array in arrays.items()}
    assert len(set(starts.values())) == len(starts)
    other_seed = everything(SyntheticWeights(TINY, seed=8))
    assert all(not np.array_equal(arrays[name], other_seed[name]) for name in arrays)


def test_shapes_and_spreads_are_those_of_the_specification():
    weights = SyntheticWeights(TINY)
    for kind, layer in (("embed", 0), ("attention", 0), ("dense", 0), ("moe", 1), ("head", 0)):
        specs = block_params(TINY, kind)
        arrays = weights.block(kind, layer)
        assert arrays.keys() == {name for name, spec in specs.items() if spec.role != "expert"}
        for name, array in arrays.items():
            spec = specs[name]
            assert array.dtype == np.float32
            assert array.shape == spec.shape
            if spec.role == "norm":
                assert NORM_RANGE[0] <= array.min() < array.max() <= NORM_RANGE[1]
            elif array.size > 1000:
                # The spread of a sample of n normals is itself spread by 1 / sqrt(2 n).
                assert array.std() == pytest.approx(spec.std, rel=5 / np.sqrt(2 * array.size))
    expert = weights.expert(1, 0)
    assert {name: array.shape for name, array in expert.items()} == {
        "gate_up": (64, 2, 32),
        "down": (32, 64),
    }


@pytest.mark.slow
def test_both_forms_of_latent_attention_are_one_model():
    """The float32 reference multiplies in another order: 2e-5 on outputs near 1."""
    rows = np.random.default_rng(0).normal(size=(1, 5, 64)).astype(np.float32)
    outputs = []
    for form in ("absorbed", "expanded"):
        cfg = TINY.with_latent_form(form)
        params = SyntheticWeights(cfg, seed=2).block("attention", 1)
        specs = block_params(cfg, "attention")
        assert {name: value.shape for name, value in params.items()} == {
            name: spec.shape for name, spec in specs.items()
        }
        outputs.append(np.asarray(reference_block(cfg, "attention", params)(jnp.asarray(rows))))
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=0, atol=2e-5)
    assert np.max(np.abs(outputs[0] - rows)) > 0.1


def test_tied_head_is_the_transposed_table():
    tied = SyntheticWeights(dataclasses.replace(zoo.model("smollm2-135m"), vocab_size=96))
    np.testing.assert_array_equal(tied.block("head")["out"], tied.block("embed")["table"].T)


def test_blocks_that_are_not_there_are_refused():
    weights = SyntheticWeights(TINY)
    with pytest.raises(WeightsError, match="layer 0 has a dense block, not moe"):
        weights.block("moe", 0)
    with pytest.raises(WeightsError, match="layer 0 has no routed experts"):
        weights.expert(0, 0)
    with pytest.raises(WeightsError, match="expert must be 0 to 7, got 8"):
        weights.expert(1, 8)
    with pytest.raises(ConfigError, match="layer must be 0 to 2, got 3"):
        weights.block("attention", 3)


def test_a_layer_has_the_kind_of_attention_that_its_model_says():
    """Values are drawn by kind, so the other kind would be another model's weights."""
    weights = SyntheticWeights(zoo.model("gpt-oss-20b"))
    with pytest.raises(WeightsError, match="layer 0 has a sliding block, not attention"):
        weights.block("attention", 0)
    with pytest.raises(WeightsError, match="layer 1 has an attention block, not sliding"):
        weights.block("sliding", 1)


def test_tokens_outside_the_vocabulary_are_refused():
    weights = SyntheticWeights(TINY)
    for token in (-1, 128):
        with pytest.raises(WeightsError, match=f"tokens must be 0 to 127, got {token}"):
            weights.of_tokens("embed", np.array([3, token]))
