"""Small changes of a configuration or of weights, of which wrong conventions are made."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from mistakes import Arrays

from models.config import ModelConfig


def in_model(**changes: Any) -> Callable[[ModelConfig], ModelConfig]:
    """Change the model."""
    return lambda cfg: dataclasses.replace(cfg, **changes)


def in_part(part: str, **changes: Any) -> Callable[[ModelConfig], ModelConfig]:
    """Change a part of the model, such as its attention."""
    return lambda cfg: dataclasses.replace(
        cfg, **{part: dataclasses.replace(getattr(cfg, part), **changes)}
    )


def in_array(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], Arrays]:
    """Change one array wherever a block has it."""
    return lambda arrays: arrays | ({name: change(arrays[name])} if name in arrays else {})
