"""A wrong convention, and a model that has it: in its configuration, a weight, or a line of code.

`wrong_conventions` lists them.
"""

import inspect
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from models.config import ModelConfig
from models.params import block_params, expert_params
from models.weights.source import WeightSource
from models.weights.stored import dequantised

Arrays = dict[str, np.ndarray]
#: Where a line of code stands (a function, or a class and a method's name), the line, another one.
Edit = tuple[Any, str, str]


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """One wrong convention."""

    model: str
    config: Callable[[ModelConfig], ModelConfig] = lambda cfg: cfg
    arrays: Callable[[Arrays], Arrays] = lambda arrays: arrays  #: of any block or expert
    reference: tuple[Edit, ...] = ()  #: edits of the reference's code
    layers: tuple[Edit, ...] = ()  #: edits of the layers' code

    @property
    def is_in_layers(self) -> bool:
        """Whether the layers hold the convention too, in code or by the configuration."""
        return bool(self.layers) or not self.reference


class Mutant:
    """A weight source with a changed configuration or changed arrays."""

    def __init__(self, right: WeightSource, mistake: Mistake) -> None:
        self.right = right
        self.config = mistake.config(right.config)
        self.change = mistake.arrays

    def block(self, kind: str, layer: int = 0) -> Arrays:
        # A changed configuration may call the attention of a layer by another kind.
        is_attention = kind not in ("embed", "dense", "moe", "head")
        own = self.right.config.layer_kinds(layer)[0] if is_attention else kind
        return self._changed(self.right.block(own, layer), block_params(self.config, kind))

    def expert(self, layer: int, expert_id: int) -> Arrays:
        assert self.config.moe is not None
        names = expert_params(self.config.d_model, self.config.moe)
        return self._changed(self.right.expert(layer, expert_id), names)

    def _changed(self, arrays: Mapping[str, Any], wanted: Mapping[str, Any]) -> Arrays:
        """Change arrays; what the changed configuration does not know is left out."""
        values = self.change({name: dequantised(weight) for name, weight in arrays.items()})
        return {name: value for name, value in values.items() if name in wanted}


def edit(patch: pytest.MonkeyPatch, edits: tuple[Edit, ...]) -> None:
    """Replace lines of code, wherever the package refers to the function they stand in.

    Raises:
        AssertionError: a line is not there, or there more than once.
    """
    changed: dict[Any, str] = {}
    for where, right, wrong in edits:
        source = changed.get(where) or textwrap.dedent(inspect.getsource(_function(where)))
        assert source.count(right) == 1, f"{right!r} is not once in {where}"
        changed[where] = source.replace(right, wrong)
    for where, source in changed.items():
        original = inspect.unwrap(_function(where))
        made: dict[str, Any] = {}
        exec(compile(source, "<mistake>", "exec"), original.__globals__, made)
        if isinstance(where, tuple):
            patch.setattr(*where, made[original.__name__])
            continue
        for module in list(sys.modules.values()):
            if getattr(module, "__name__", "").split(".")[0] in ("models", "sharding"):
                for name in [n for n, value in vars(module).items() if value is where]:
                    patch.setattr(module, name, made[original.__name__])


def _function(where: Any) -> Any:
    return getattr(*where) if isinstance(where, tuple) else where
