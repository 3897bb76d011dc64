"""Tensor-core sums against stored products of mmasim, and against the rule in Fractions.

mmasim is the model that was compared with the chips; `oracle/test_mmasim.py` asks it again.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tensor_core_products
from hypothesis import given, settings
from hypothesis import strategies as st
from tensor_core_blocks import CASES, CLASSES, STEPS, operands
from tensor_core_products import array_of, product, quantized
from tensor_core_reference import output

from lpu_jax.errors import LpuError
from lpu_jax.numerics import tensor_core, tensor_core_plain
from lpu_jax.numerics.schemes import MXFP4
from lpu_jax.numerics.tensor_core_rules import RULES, Rule, rule_of

#: A case of each way to add: 16 and 32 products, with block scales, and groups.
FAST = (0, 5, 11, 14)
ALL = [i if i in FAST else pytest.param(i, marks=pytest.mark.slow) for i in range(len(CASES))]


@cache
def stored() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parent / "data" / "tensor_core.npz") as arrays:
        return dict(arrays)


def blocks(i, name):
    """Stored operands and the bits of their product."""
    prefix = f"{i}."
    made = {
        key.removeprefix(prefix): array[CLASSES.index(name)]
        for key, array in stored().items()
        if key.startswith(prefix)
    }
    return made, made.pop("d")


def reference(case, rule, made):
    m, n = made["c"].shape
    scales = "a_scales" in made
    return np.array(
        [
            [
                output(
                    case,
                    rule,
                    made["a"][i],
                    made["b"][:, j],
                    int(made["c"][i, j]),
                    (made["a_scales"][i], made["b_scales"][:, j]) if scales else None,
                )
                for j in range(n)
            ]
            for i in range(m)
        ],
        np.uint32,
    )


@pytest.mark.first(1)
@pytest.mark.parametrize("i", ALL)
def test_stored_products_of_mmasim_are_reproduced(i):
    for name in CLASSES:
        made, d = blocks(i, name)
        np.testing.assert_array_equal(product(CASES[i], made), d, err_msg=name)


@pytest.mark.parametrize("i", range(len(CASES)))
def test_the_rule_in_fractions_gives_the_stored_products(i):
    case = CASES[i]
    for name in CLASSES:
        made, d = blocks(i, name)
        part = {key: array[:2] if key[0] in "ac" else array[:, :2] for key, array in made.items()}
        part["c"] = part["c"][:, :2]
        found = reference(case, rule_of(case[1], case[0]), part)
        np.testing.assert_array_equal(found, d[:2, :2], err_msg=name)


@pytest.mark.parametrize("i", ALL)
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), name=st.sampled_from(CLASSES))
def test_random_blocks_follow_the_rule_in_fractions(i, seed, name):
    case = CASES[i]
    made = operands(case, name, 8, 8, 2 * STEPS[case[0]], np.random.default_rng(seed))
    part = {key: array[:1] if key[0] in "ac" else array[:, :2] for key, array in made.items()}
    part["c"] = part["c"][:, :2]
    expected = reference(case, rule_of(case[1], case[0]), part)
    np.testing.assert_array_equal(product(case, made)[:1, :2], expected)


@pytest.mark.parametrize("change", [{"alignment_bits": 24}, {"step": 8}, {"zero_exponent": -100}])
def test_the_stored_products_tell_a_wrong_rule(change):
    rule = replace(rule_of("blackwell", "bf16"), **change)
    parts = []
    for name in CLASSES:
        made, d = blocks(3, name)
        made = {key: array[:3] if key != "b" else array for key, array in made.items()}
        parts.append((reference(CASES[3], rule, made) != d[:3]).any())
    assert any(parts)


@pytest.mark.slow
@pytest.mark.parametrize("i", [0, 5])
def test_zeros_behind_the_contraction_change_no_bit(i):
    case = CASES[i]
    for name in ("cancelling", "spread", "specials", "overflowing"):
        made, d = blocks(i, name)
        rng = np.random.default_rng(2)
        k = STEPS[case[0]] + 3
        sign = 1 << (8 * made["a"].itemsize - 1)
        zeros = (rng.integers(0, 2, (8, k)) * sign).astype(made["a"].dtype)  # of both signs
        longer = made | {
            "a": np.concatenate([made["a"], zeros], 1),
            "b": np.concatenate([made["b"], zeros.T], 0),
        }
        np.testing.assert_array_equal(product(case, longer), d, err_msg=name)


@pytest.mark.slow
def test_an_output_does_not_depend_on_its_neighbours():
    rng = np.random.default_rng(3)
    made = operands(CASES[0], "spread", 5, 300, 32, rng)  # several blocks of columns, the last cut
    whole = product(CASES[0], made)
    one = {"a": made["a"][2:3], "b": made["b"][:, 150:298], "c": made["c"][2:3, 150:298]}
    np.testing.assert_array_equal(product(CASES[0], one), whole[2:3, 150:298])


@pytest.mark.slow
@pytest.mark.parametrize("i", [0, 2, 5, 11])
def test_plain_sums_are_those_of_every_sum(monkeypatch, i):
    # The same bits: both forms add the same terms. Several turns, the last moved back to fit.
    rng = np.random.default_rng(4)
    made = operands(CASES[i], "near-one", 6, 300, 5 * STEPS[CASES[i][0]], rng)
    found = []
    for is_plain in (False, True):
        monkeypatch.setattr(tensor_core, "is_plain", lambda *_, given=is_plain: jnp.bool_(given))
        monkeypatch.setattr(tensor_core_plain, "_OUTPUTS", 1)
        tensor_core_products._compiled.cache_clear()
        found.append(product(CASES[i], made))
    tensor_core_products._compiled.cache_clear()
    np.testing.assert_array_equal(found[1], found[0])


def test_without_products_the_sum_is_what_it_began_with():
    c = jnp.asarray([[1.5, -0.0]], jnp.float32)
    x, w = jnp.zeros((1, 0), jnp.float16), jnp.zeros((0, 2), jnp.float16)
    found = tensor_core.matmul(x, w, generation="hopper", c=c)
    assert np.asarray(found).tolist() == [[1.5, 0.0]]
    assert tensor_core.matmul(x, w, generation="hopper").shape == (1, 2)


@pytest.mark.slow
def test_sums_are_cut_towards_zero():
    # 1 + 2**-24 - 2**-30: the neighbour towards zero is 1; a nearest sum would be 1 too, but not
    # that of 1 + 3 * 2**-25, which lies above the middle.
    x = jnp.asarray([[1, 2**-12, 2**-13]], jnp.float16)
    w = jnp.asarray([[1], [2**-12], [2**-12]], jnp.float16)
    found = tensor_core.matmul(x, w, generation="hopper")
    assert float(found[0, 0]) == 1.0
    assert np.float32(1 + 3 * 2**-25) > 1


def test_every_rule_has_a_source_and_rubin_is_assumed():
    for generation, rules in RULES.items():
        for rule in rules.values():
            assert rule.source
            assert (rule.status == "assumed") == (generation == "rubin")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: tensor_core.kind_of("float16", "bfloat16"), "float16 and bfloat16 were given"),
        (lambda: tensor_core.kind_of("int8", "int8"), "int8 and int8 were given"),
        (lambda: rule_of("hopper", "nvfp4"), "nvfp4 on hopper was given"),
        (lambda: Rule(step=16, alignment_bits=26, source="-"), "alignment_bits=26 was given"),
    ],
)
def test_wrong_arguments_are_refused_in_one_sentence(call, words):
    with pytest.raises(LpuError, match=words):
        call()


def test_wrong_schemes_are_refused():
    made, _ = blocks(14, "finite")
    x = quantized("nvfp4", made["a"], made["a_scales"], "e2m1", -1)
    with pytest.raises(LpuError, match="schemes nvfp4 and mxfp4 were given"):
        tensor_core.scaled_kind_of(x.scheme, MXFP4)
    with pytest.raises(LpuError, match="blocks along axes -1 of x and -1 of w"):
        tensor_core.check_scaled(x, x)


def test_codes_are_read_as_their_types():
    codes = np.asarray([[0x3C00, 0xC000]], np.uint16)
    assert np.asarray(array_of(codes, "float16")).tolist() == [[1.0, -2.0]]
