"""Random weights made on demand: any tensor of any model from (seed, layer, name, expert).

The same tensor has the same values whatever was asked for before, so chips can make their own
shares. Values do not resemble trained weights: independent normals, no outliers, no structure.
"""

import math
from hashlib import blake2b

import numpy as np

from ..config import ModelConfig
from ..params import ParamSpec, block_params, expert_params
from .source import Arrays, check_block, check_expert

#: Norm weights are uniform in this range: near 1, yet wrong in every layer that ignores them.
NORM_RANGE = (0.5, 1.5)


class SyntheticWeights:
    """A weight source of seeded random values.

    Matrices are normal with the spread of their `ParamSpec` (1 / sqrt(fan-in)), norms uniform in
    `NORM_RANGE`, router biases normal and small.

    Fidelity:
        The values are exact functions of the arguments and of NumPy's generator, whose stream
        NumPy may change between releases.
    """

    def __init__(self, model_cfg: ModelConfig, seed: int = 0) -> None:
        self.config = model_cfg
        self.seed = seed

    def block(self, kind: str, layer: int = 0) -> Arrays:
        """Return one block's parameters; see `WeightSource.block`."""
        check_block(self.config, kind, layer)
        specs = block_params(self.config, kind)
        if kind == "head" and self.config.tie_embeddings:
            table = self.block("embed")["table"]
            return {
                "norm": self._draw(kind, 0, "norm", specs["norm"]),
                "out": np.ascontiguousarray(table.T),
            }
        position = 0 if kind in ("embed", "head") else layer
        return {
            name: self._draw(kind, position, name, spec)
            for name, spec in specs.items()
            if spec.role != "expert"
        }

    def expert(self, layer: int, expert_id: int) -> Arrays:
        """Return one routed expert; see `WeightSource.expert`."""
        check_expert(self.config, layer, expert_id)
        moe = self.config.moe
        assert moe is not None  # check_expert refused such models
        return {
            name: self._draw("moe", layer, name, spec, expert_id)
            for name, spec in expert_params(self.config.d_model, moe).items()
        }

    def _draw(
        self, kind: str, layer: int, name: str, spec: ParamSpec, expert_id: int | None = None
    ) -> np.ndarray:
        shape = spec.shape if expert_id is None else spec.shape[1:]
        label = f"{self.seed}/{kind}/{layer}/{name}/{expert_id}"
        digest = blake2b(label.encode(), digest_size=16).digest()
        generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
        if spec.role == "norm":
            low, high = NORM_RANGE
            return generator.uniform(low, high, shape).astype(np.float32)
        values = generator.standard_normal(math.prod(shape), dtype=np.float32)
        values *= np.float32(spec.std)
        return values.reshape(shape)
