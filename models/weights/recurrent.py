"""The arrays of a recurrent layer from a checkpoint's tensors, in the shapes of `models.params`.

Order in memory only: `source` reads tensors, `tensor_names` says what they are called.
"""

from collections.abc import Callable, Mapping
from itertools import accumulate, pairwise

import numpy as np
from einops import rearrange

from ..config import RecurrentConfig
from ..param_spec import ParamSpec
from ..tensor_names import TensorNames
from .stored import Matrix, Weight, joined, laid_out, moved, packed

Weights = dict[str, Weight]


def recurrent_arrays(
    net: RecurrentConfig,
    specs: Mapping[str, ParamSpec],
    names: TensorNames,
    matrix: Callable[[str], Matrix],
    vector: Callable[[str], np.ndarray],
) -> Weights:
    """Return the arrays of a recurrent layer, but for the norm before it.

    Args:
        net: the recurrence.
        specs: of the block.
        names: of its tensors within the layer.
        matrix: reads a matrix by its name, without `.weight`.
        vector: reads plain numbers in float32, by their full name.
    """
    heads = {"k": net.n_key_heads, "g": net.value_heads_per_key}
    taps = np.concatenate([vector(f"{name}.weight") for name in names.recurrent_taps])[:, 0]
    *qk_taps, v_taps = _convolved(taps, net)
    fading = np.exp(vector(names.recurrent_fading))
    bias = vector(names.recurrent_fading_bias)
    out_norm = vector(f"{names.recurrent_norm}.weight")
    by_rule = _by_head
    if net.rule == "mamba2":
        by_rule = _by_step
    elif net.is_full_rank:
        by_rule = _by_full_rank
    elif net.is_gate_full:
        by_rule = _by_full_gate
    elif net.channel_rank is not None:
        by_rule = _by_channel
    of_mamba2: Weights = {}
    if net.rule == "mamba2":
        (convolution,) = names.recurrent_taps
        *qk_bias, v_bias = _convolved(vector(f"{convolution}.bias"), net)
        of_mamba2 = {
            "qk_taps_bias": np.stack(qk_bias).reshape(specs["qk_taps_bias"].shape),
            "v_taps_bias": v_bias.reshape(specs["v_taps_bias"].shape),
            "skip": vector(names.recurrent_skip).reshape(specs["skip"].shape),
        }
    return {
        **by_rule(net, specs, [matrix(name) for name in names.recurrent]),
        "qk_taps": packed(np.stack(qk_taps), "two (k h) taps -> taps two k h", k=heads["k"]),
        "v_taps": packed(v_taps, "(k g h) taps -> taps k g h", **heads),
        "fading": fading.reshape(specs["fading"].shape),
        "fading_bias": bias.reshape(specs["fading_bias"].shape),
        **of_mamba2,
        "out_norm": out_norm.reshape(specs["out_norm"].shape),
        "o": laid_out(matrix(names.recurrent_output), specs["o"], "d (k g h) -> k g h d", **heads),
    }


def _convolved(rows: np.ndarray, net: RecurrentConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut what belongs to convolved channels apart: of queries, keys and values.

    Files of Mamba2 hold them the other way round.
    """
    keys, values = net.n_key_heads * net.key_dim, net.n_value_heads * net.value_dim
    if net.rule == "mamba2":
        v, k, q = (rows[part] for part in _spans(values, keys, keys))
    else:
        q, k, v = (rows[part] for part in _spans(keys, keys, values))
    return q, k, v


def _spans(*lengths: int) -> list[slice]:
    return [slice(*ends) for ends in pairwise(accumulate(lengths, initial=0))]


def _by_head(net: RecurrentConfig, specs: Mapping[str, ParamSpec], found: list[Matrix]) -> Weights:
    """Lay out the projections of Gated DeltaNet."""
    qk, vz, ba = _projections(net, found)
    by_head = {"two": 2, "k": net.n_key_heads, "g": net.value_heads_per_key}
    return {
        "qk": laid_out(qk, specs["qk"], "(two k h) d -> d two k h", two=2, k=net.n_key_heads),
        "vz": laid_out(vz, specs["vz"], "(two k g h) d -> d two k g h", **by_head),
        "ba": laid_out(ba, specs["ba"], "(two k g) d -> d two k g", **by_head),
    }


def _by_channel(
    net: RecurrentConfig, specs: Mapping[str, ParamSpec], found: list[Matrix]
) -> Weights:
    """Lay out the projections of Kimi Delta Attention."""
    heads = {"k": net.n_key_heads, "g": net.value_heads_per_key}
    q, k, v, f_a, f_b, g_a, g_b, b = found
    qk, low = joined((q, k), np.concatenate), joined((f_a, g_a), np.stack)
    return {
        "qk": laid_out(qk, specs["qk"], "(two k h) d -> d two k h", two=2, k=heads["k"]),
        "v": laid_out(v, specs["v"], "(k g h) d -> d k g h", **heads),
        "fg_a": laid_out(low, specs["fg_a"], "two rank d -> d two rank"),
        "f_b": laid_out(f_b, specs["f_b"], "(k g h) rank -> rank k g h", **heads),
        "g_b": laid_out(g_b, specs["g_b"], "(k g h) rank -> rank k g h", **heads),
        "b": laid_out(b, specs["b"], "(k g) d -> d k g", **heads),
    }


def _by_full_gate(
    net: RecurrentConfig, specs: Mapping[str, ParamSpec], found: list[Matrix]
) -> Weights:
    """Lay out the projections of a recurrence whose gates alone come by one matrix."""
    heads = {"k": net.n_key_heads, "g": net.value_heads_per_key}
    q, k, v, f_a, f_b, z, b = found
    qk, vz = joined((q, k), np.stack), joined((v, z), np.stack)
    return {
        "qk": laid_out(qk, specs["qk"], "two (k h) d -> d two k h", k=heads["k"]),
        "vz": laid_out(vz, specs["vz"], "two (k g h) d -> d two k g h", **heads),
        "f_a": laid_out(f_a, specs["f_a"], "rank d -> d rank"),
        "f_b": laid_out(f_b, specs["f_b"], "(k g h) rank -> rank k g h", **heads),
        "b": laid_out(b, specs["b"], "(k g) d -> d k g", **heads),
    }


def _by_full_rank(
    net: RecurrentConfig, specs: Mapping[str, ParamSpec], found: list[Matrix]
) -> Weights:
    """Lay out the projections of a recurrence whose decays and gates come by one matrix each."""
    heads = {"k": net.n_key_heads, "g": net.value_heads_per_key}
    q, k, v, f, z, b = found
    qk, vz = joined((q, k), np.stack), joined((v, z), np.stack)
    return {
        "qk": laid_out(qk, specs["qk"], "two (k h) d -> d two k h", k=heads["k"]),
        "vz": laid_out(vz, specs["vz"], "two (k g h) d -> d two k g h", **heads),
        "f": laid_out(f, specs["f"], "(k g h) d -> d k g h", **heads),
        "b": laid_out(b, specs["b"], "(k g) d -> d k g", **heads),
    }


def _by_step(net: RecurrentConfig, specs: Mapping[str, ParamSpec], found: list[Matrix]) -> Weights:
    """Lay out the projections of Mamba2: gates, values, keys, queries and steps, one by one."""
    keys, values = net.n_key_heads * net.key_dim, net.n_value_heads * net.value_dim
    z, v, k, q, b = (
        moved(found[0], lambda rows, part=part: rows[part])  # type: ignore[misc]
        for part in _spans(values, values, keys, keys, net.n_value_heads)
    )
    heads = {"k": net.n_key_heads, "g": net.value_heads_per_key}
    qk, vz = joined((q, k), np.stack), joined((v, z), np.stack)
    return {
        "qk": laid_out(qk, specs["qk"], "two (k h) d -> d two k h", k=heads["k"]),
        "vz": laid_out(vz, specs["vz"], "two (k g h) d -> d two k g h", **heads),
        "b": laid_out(b, specs["b"], "(k g) d -> d k g", **heads),
    }


def _projections(net: RecurrentConfig, found: list[Matrix]) -> tuple[Matrix, Matrix, Matrix]:
    """Return queries and keys, values and gates, rates and decays; heads in order in each."""
    n_qk = 2 * net.n_key_heads * net.key_dim
    if len(found) > 2:
        qkv, *others = found
        qk = moved(qkv, lambda rows: rows[:n_qk])
        v = moved(qkv, lambda rows: rows[n_qk:])
        z, b, a = others
        return qk, joined((v, z), np.concatenate), joined((b, a), np.concatenate)
    k, g, qk_width = net.n_key_heads, net.value_heads_per_key, 2 * net.key_dim

    def of_heads(rows: np.ndarray, span: slice) -> np.ndarray:
        # A key head has two: queries and keys, values and gates, or rates and decays.
        part = rearrange(rows, "(k rest) d -> k rest d", k=k)[:, span]
        return rearrange(part, "k (two rest) d -> (two k rest) d", two=2)

    qkvz, ba = found
    return (
        moved(qkvz, lambda rows: of_heads(rows, slice(0, qk_width))),
        moved(qkvz, lambda rows: of_heads(rows, slice(qk_width, None))),
        moved(ba, lambda rows: of_heads(rows, slice(0, 2 * g))),
    )
