"""Random weights made on demand: any tensor of any model, or any part of it, from its name alone.

The same tensor has the same values whatever was asked for before, so chips can make their own
shares. Values do not resemble trained weights: independent normals, no outliers, no structure.
"""

import math
from functools import cache
from hashlib import blake2b
from itertools import pairwise
from statistics import NormalDist

import numpy as np
from jaxtyping import Float32, Float64, Int

from lpu_jax.arguments import described
from lpu_jax.errors import WeightsError
from lpu_jax.predicates import is_whole

from ..config import ModelConfig
from ..depth import with_states
from ..param_spec import ParamSpec
from ..params import block_params, expert_params
from .protocol import check_block, check_expert
from .source import Arrays

#: Norm weights are uniform in this range: near 1, yet wrong in every layer that ignores them.
NORM_RANGE = (0.5, 1.5)

#: Random words choose among this many quantiles; 16 bits, so that a table stays in a cache.
_WORDS = 1 << 16
_WORDS_PER_DRAW = 4  # of 16 bits in the generator's 64
#: Values made at once: their words and results stay in a cache.
_CHUNK = 1 << 16


class SyntheticWeights:
    """A weight source of seeded random values.

    Matrices are normal with the spread of their `ParamSpec` (1 / sqrt(fan-in)), norms uniform in
    `NORM_RANGE`, biases normal and small. A value is one of 65,536 equally likely ones, the largest
    4.3 spreads from zero. Both forms of latent attention hold the same values, those that are drawn
    for the absorbed one.

    Fidelity:
        Exact functions of the arguments: raw bits of PCG64DXSM, whose stream NumPy guarantees
        (NEP 19; not so its distributions), through a table.
    """

    def __init__(self, model_cfg: ModelConfig, seed: int = 0) -> None:
        if not isinstance(model_cfg, ModelConfig):
            raise WeightsError(
                f"SyntheticWeights: the model is of type {type(model_cfg).__name__}; it must be a "
                "ModelConfig, such as model('smollm2-135m')."
            )
        if not (is_whole(seed) and seed >= 0):
            raise WeightsError(
                f"SyntheticWeights: seed is {described(seed)}; it must be a whole number, at least "
                "0."
            )
        self.config = model_cfg
        self.seed = seed

    def block(self, kind: str, layer: int = 0) -> Arrays:
        """Return one block's parameters; see `WeightSource.block`."""
        check_block(self.config, kind, layer)
        if kind in ("embed", "head"):
            return self.of_tokens(kind, np.arange(self.config.vocab_size))
        specs = block_params(self.config, kind)
        if "kv_b" in specs:
            absorbed = SyntheticWeights(self.config.with_latent_form("absorbed"), self.seed)
            return _expanded(absorbed.block(kind, layer))
        arrays = {
            name: self._draw(_label(kind, layer, name), spec, spec.shape)
            for name, spec in specs.items()
            if spec.role != "expert" and not spec.is_number
        }
        return with_states(self.config, kind, layer, arrays)

    def of_tokens(self, kind: str, tokens: Int[np.ndarray, " n"]) -> Arrays:
        """Return the embedding or the head for some tokens alone.

        Args:
            kind: "embed" or "head".
            tokens: token numbers, in any order.

        Returns:
            As `block(kind)`: of "embed" the table's rows of these tokens, of "head" the norm and
            the output matrix's columns of these tokens.

        Raises:
            WeightsError: a token is not in the vocabulary.
        """
        specs = block_params(self.config, kind)
        outside = tokens[(tokens < 0) | (tokens >= self.config.vocab_size)]
        if outside.size:
            raise WeightsError(
                f"{self.config.name}: tokens must be 0 to {self.config.vocab_size - 1}, got "
                f"{outside[0]}."
            )
        # Both ends are drawn token by token; a tied head is the table itself.
        if kind == "embed" or self.config.tie_embeddings:
            spec = block_params(self.config, "embed")["table"]
            rows = self._rows(_label("embed", 0, "table"), spec, tokens)
        else:
            rows = self._rows(_label("head", 0, "out"), specs["out"], tokens)
        if kind == "embed":
            return {"table": rows}
        arrays = {
            name: self._draw(_label("head", 0, name), spec, spec.shape)
            for name, spec in specs.items()
            if name != "out"
        }
        return {**arrays, "out": rows.T}

    def expert(self, layer: int, expert_id: int) -> Arrays:
        """Return one routed expert; see `WeightSource.expert`."""
        check_expert(self.config, layer, expert_id)
        moe = self.config.moe
        assert moe is not None  # check_expert refused such models
        return {
            name: self._draw(_label("moe", layer, name, expert_id), spec, spec.shape[1:])
            for name, spec in expert_params(self.config.d_model, moe).items()
        }

    def _rows(
        self, label: str, spec: ParamSpec, tokens: Int[np.ndarray, " n"]
    ) -> Float32[np.ndarray, "n d"]:
        """Draw the rows of some tokens of a matrix `[vocab, d]`; neighbours in one go."""
        width = self.config.d_model
        rows = np.empty((len(tokens), width), np.float32)
        ends = [0, *(np.flatnonzero(np.diff(tokens) != 1) + 1).tolist(), len(tokens)]
        for start, stop in pairwise(ends):
            if start < stop:
                values = rows[start:stop].reshape(-1)
                _fill(values, self._key(label), int(tokens[start]) * width, _normals(spec.std))
        return rows

    def _draw(self, label: str, spec: ParamSpec, shape: tuple[int, ...]) -> np.ndarray:
        values = np.empty(math.prod(shape), np.float32)
        table = _uniforms(*NORM_RANGE) if spec.role == "norm" else _normals(spec.std)
        _fill(values, self._key(label), 0, table)
        return values.reshape(shape)

    def _key(self, label: str) -> int:
        digest = blake2b(f"{self.seed}/{label}".encode(), digest_size=16).digest()
        return int.from_bytes(digest, "little")


def _expanded(arrays: Arrays) -> Arrays:
    """Put the matrices of absorbed latent attention side by side: the same model, expanded."""
    k_b, v_b = arrays.pop("k_b"), arrays.pop("v_b")
    both = np.concatenate((k_b.transpose(2, 0, 1), v_b.transpose(1, 0, 2)), axis=-1)
    return arrays | {"kv_b": both}


def _label(kind: str, layer: int, name: str, expert_id: int | None = None) -> str:
    return f"{kind}/{layer}/{name}/{expert_id}"


def _fill(
    out: Float32[np.ndarray, " n"], key: int, first: int, table: Float32[np.ndarray, " words"]
) -> None:
    """Write values `first`, `first + 1`, ... of an endless row of values that `key` names."""
    generator = np.random.PCG64DXSM(key)
    generator.advance(first // _WORDS_PER_DRAW)
    skipped = first % _WORDS_PER_DRAW
    done = 0
    while done < len(out):
        n = min(_CHUNK - skipped, len(out) - done)
        draws = generator.random_raw(-(-(skipped + n) // _WORDS_PER_DRAW))
        words = draws.astype("<u8", copy=False).view("<u2")[skipped : skipped + n]
        np.take(table, words, out=out[done : done + n], mode="clip")  # "raise" would copy
        done += n
        skipped = 0


@cache
def _normals(std: float) -> Float32[np.ndarray, " words"]:
    """Quantiles of the normal distribution at the middles of equal shares; spread exactly `std`."""
    return (std * _quantiles()).astype(np.float32)


@cache
def _quantiles() -> Float64[np.ndarray, " words"]:
    inverse = NormalDist().inv_cdf
    upper = np.array([inverse((i + 0.5) / _WORDS) for i in range(_WORDS // 2, _WORDS)])
    upper /= math.sqrt(math.fsum(upper**2) / len(upper))
    return np.concatenate((-upper[::-1], upper))


@cache
def _uniforms(low: float, high: float) -> Float32[np.ndarray, " words"]:
    """Middles of equal shares of a range."""
    return (low + (high - low) * (np.arange(_WORDS) + 0.5) / _WORDS).astype(np.float32)
