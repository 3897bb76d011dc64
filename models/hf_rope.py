"""Read the rotations of a Hugging Face `config.json`.

Both spellings are read: `rope_parameters`, and the hub's `rope_theta` and `rope_scaling`.
"""

from typing import Any

from .hf_keys import Keys
from .hf_rules import FamilyRules
from .rope import LinearScaling, Llama3Scaling, RopeConfig, Scaling, YarnScaling

#: Rules of the rotation that are modelled; the first scales nothing.
_SCALINGS = ("default", "llama3", "yarn", "linear")

#: The base of a rotation that turns nothing: the model's files say none.
_UNTURNED_BASE = 10_000.0


def rotation_parts(keys: Keys, rules: FamilyRules) -> tuple[Keys, Keys]:
    """Return the keys of the rotation of layers that see all keys, and of those that slide.

    `rope_parameters` has a part for each. On the hub `rope_theta` and `rope_scaling` are about the
    former, `rope_local_base_freq` or `swa_rope_theta` about the latter, or `rope_theta` about both
    where the type has no base for these, and the part of a head that is rotated, where a type has
    one, is that of both.

    Args:
        keys: of the file.
        rules: of its type, which has both rotations.

    Raises:
        ConfigError: the file has both spellings, or a part of the rotation that is not known.
    """
    modern = keys.mapping("rope_parameters")
    full: dict[str, Any]
    local: dict[str, Any]
    if modern is None:
        full = {key: keys.values[key] for key in ("rope_theta", "rope_scaling") if keys.has(key)}
        of_sliding = ("rope_local_base_freq", "swa_rope_theta")
        has_own = of_sliding[0] in rules.defaults
        base = keys.number(*(of_sliding if has_own else ("rope_theta",)))
        local = {"rope_theta": base, "rope_scaling": {"rope_type": "default"}}
        keys.read.update(("rope_theta", "rope_scaling"))
        if rules.is_partial:
            turned = {"partial_rotary_factor": keys.number("partial_rotary_factor")}
            full, local = full | turned, local | turned
    else:
        for key in ("rope_theta", "rope_scaling", "rope_local_base_freq"):
            if keys.has(key):
                raise keys.complain(key, "absent beside 'rope_parameters'")
        parts = (modern.mapping(kind) for kind in ("full_attention", "sliding_attention"))
        full, local = (
            {"rope_parameters": {"rope_type": "default"} if part is None else part.values}
            for part in parts
        )
        modern.finish()
    share = {key: v for key, v in rules.defaults.items() if key == "partial_rotary_factor"}
    usual = (
        share | {"rope_theta": rules.defaults.get(key, rules.defaults["rope_theta"])}
        for key in ("rope_theta", "rope_local_base_freq")
    )
    return (
        Keys(full, f"{keys.where}, rotation of layers that do not slide", next(usual)),
        Keys(local, f"{keys.where}, rotation of sliding layers", next(usual)),
    )


def read_rope(keys: Keys, rules: FamilyRules, head_dim: int) -> RopeConfig:
    """Read a rotation.

    Args:
        keys: of the file, or those of `rotation_parts`.
        rules: what the type of model fixes.
        head_dim: values of a head.

    Raises:
        ConfigError: a key is missing, of the wrong type, or asks for a rule that is not modelled.
    """
    for key in ("rope_interleave", "rope_interleaved"):
        keys.must_be(key, rules.is_interleaved)
    modern, hub = keys.mapping("rope_parameters"), keys.mapping("rope_scaling")
    if modern is not None and hub is not None and not _are_equal(modern, hub):
        raise keys.complain("rope_scaling", "absent beside 'rope_parameters', or equal to it")
    numbers = modern or hub
    if numbers is None and rules.scaling_by_default:
        numbers = Keys(rules.scaling_by_default, f"{keys.where}, rope_scaling by default")
    unsaid = _UNTURNED_BASE if rules.is_kimi_k3 else None
    theta = _holder("rope_theta", modern, keys).number("rope_theta", default=unsaid)
    keys.must_be("rope_theta", theta)
    if rules.has_global_heads and numbers is not None and _has_still_pairs(numbers):
        return _proportional_rope(numbers, theta, head_dim)
    dim = _rotated(keys, _holder("partial_rotary_factor", modern, keys), rules, head_dim)
    scaling: Scaling | None = None
    if numbers is not None:
        scaling = _read_scaling(numbers, rules)
        if rules.has_picture_axes:
            numbers.read.update(("mrope_section", "mrope_interleaved"))
        numbers.must_be("rope_theta", theta)
        numbers.finish()
    if scaling is None:  # it tells nothing else
        keys.read.add("original_max_position_embeddings")
    if isinstance(scaling, YarnScaling):
        keys.must_be("initial_context_length", scaling.original_max_position)
    return RopeConfig(theta=theta, dim=dim, interleaved=rules.is_interleaved, scaling=scaling)


def _are_equal(modern: Keys, hub: Keys) -> bool:
    """Whether both spellings scale alike: the old one has no keys of the rotation itself."""
    said, old = (
        {"rope_type" if key == "type" else key: v for key, v in part.values.items()}
        for part in (modern, hub)
    )
    of_rotation = {"rope_theta", "partial_rotary_factor"}
    return said == {key: said[key] for key in of_rotation & said.keys()} | old


def _holder(key: str, modern: Keys | None, keys: Keys) -> Keys:
    """Return where a file has a key of the rotation: the modern place, unless only the old has."""
    return keys if modern is None or (keys.has(key) and not modern.has(key)) else modern


def _rotated(keys: Keys, holder: Keys, rules: FamilyRules, head_dim: int) -> int:
    """Return how many values of a head are rotated."""
    if not rules.is_partial:
        for part in (keys, holder):
            part.must_be("partial_rotary_factor", 1.0)
        return head_dim
    if not holder.has("partial_rotary_factor") and keys.has("rotary_dim"):
        return keys.integer("rotary_dim")
    factor = holder.number("partial_rotary_factor")
    keys.must_be("partial_rotary_factor", factor)
    dim = int(head_dim * factor)  # Hugging Face cuts the product down to a whole number
    keys.must_be("rotary_dim", dim)
    return dim


def _read_scaling(numbers: Keys, rules: FamilyRules) -> Scaling | None:
    kind = numbers.text("rope_type", "type")
    if kind not in (_SCALINGS if rules.is_scaled else _SCALINGS[:1]):
        spelling = "rope_type" if numbers.has("rope_type") else "type"
        alone = '"default", the only rule modelled for this type of model'
        raise numbers.complain(
            spelling, f"one of {', '.join(_SCALINGS)}" if rules.is_scaled else alone
        )
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(factor=numbers.number("factor"))
    if kind == "llama3":
        return Llama3Scaling(
            factor=numbers.number("factor"),
            low_freq_factor=numbers.number("low_freq_factor"),
            high_freq_factor=numbers.number("high_freq_factor"),
            original_max_position=numbers.integer("original_max_position_embeddings"),
        )
    numbers.read.add("finetuned")  # how the model came to be
    return YarnScaling(
        factor=numbers.number("factor"),
        beta_fast=numbers.number("beta_fast", default=32.0),
        beta_slow=numbers.number("beta_slow", default=1.0),
        original_max_position=numbers.integer("original_max_position_embeddings"),
        mscale=_unless_zero(numbers, "mscale"),
        mscale_all_dim=_unless_zero(numbers, "mscale_all_dim"),
        cos_sin_factor=numbers.optional_number("attention_factor"),
        truncate=numbers.boolean("truncate", default=True),
    )


def _unless_zero(numbers: Keys, key: str) -> float | None:
    """Read a number for which 0 says as much as null."""
    numbers.read.add(key)
    return numbers.number(key) if numbers.values.get(key) else None


def _has_still_pairs(numbers: Keys) -> bool:
    """Whether a rotation is "proportional": pairs of all values of a head, of which some turn."""
    return numbers.values.get("rope_type") == "proportional"


def _proportional_rope(numbers: Keys, theta: float, head_dim: int) -> RopeConfig:
    """Read such a rotation, of base `theta`.

    Source: rule "proportional" of Hugging Face transformers' `modeling_rope_utils`.
    """
    numbers.text("rope_type")
    numbers.must_be("factor", 1.0)
    numbers.must_be("rope_theta", theta)
    share = numbers.number("partial_rotary_factor", default=1.0)
    numbers.finish()
    dim = 2 * int(share * head_dim // 2)
    return RopeConfig(theta=theta, dim=dim, interleaved=False, span=head_dim)
