"""What configurations check of their own fields."""

import dataclasses

from lpu_jax.arguments import described
from lpu_jax.errors import ConfigError
from lpu_jax.predicates import is_number, is_whole


def require_positive(owner: object, *fields: str) -> None:
    """Refuse fields that are no numbers above 0, whole ones where their type says so.

    Raises:
        ConfigError: with the first such field.
    """
    types = {each.name: each.type for each in dataclasses.fields(owner)}  # type: ignore[arg-type]
    for field in fields:
        value, is_float = getattr(owner, field), "float" in str(types[field])
        name = f"{type(owner).__name__}.{field}"
        if not (is_number(value) if is_float else is_whole(value) and value < 2**31):
            kind = "a number" if is_float else "a whole number below 2**31"
            raise ConfigError(f"{name} must be {kind}, got {described(value)}.")
        if value <= 0:
            raise ConfigError(f"{name} must be above 0, got {value}.")
