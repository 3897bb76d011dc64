"""Read what the layers of some types have of a Hugging Face `config.json` beside the usual keys.

Caps and multipliers of scores, and what sliding layers have of their own. No rotation is read here,
only which keys of the file are about the rotation of which layers.
"""

from typing import Any, Literal

from .hf_families import FamilyRules
from .hf_keys import Keys

_CAPS = {"logits": "final_logit_softcapping", "scores": "attn_logit_softcapping"}


def read_cap(keys: Keys, rules: FamilyRules, of: Literal["logits", "scores"]) -> float | None:
    """Return within what logits or scores are kept; a type without caps leaves the key unread."""
    return keys.optional_number(_CAPS[of]) if of in rules.caps else None


def read_scale(keys: Keys, rules: FamilyRules) -> float | None:
    """Return what multiplies q·k, where it is not one over the root of a head's width."""
    if rules.has_multipliers:
        return keys.number("attention_multiplier")
    return keys.number("query_pre_attn_scalar") ** -0.5 if rules.has_query_scalar else None


def rotation_parts(keys: Keys, rules: FamilyRules) -> tuple[Keys, Keys]:
    """Return the keys of the rotation of layers that see all keys, and of those that slide.

    `rope_parameters` has a part for each. On the hub `rope_theta` and `rope_scaling` are about the
    former, `rope_local_base_freq` about the latter.

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
        local = {"rope_theta": keys.number("rope_local_base_freq")}
        keys.read.update(("rope_theta", "rope_scaling"))
    else:
        for key in ("rope_theta", "rope_scaling", "rope_local_base_freq"):
            if keys.has(key):
                raise keys.complain(key, "absent beside 'rope_parameters'")
        full, local = (
            {"rope_parameters": modern.values.get(kind)}
            for kind in ("full_attention", "sliding_attention")
        )
        modern.read.update(("full_attention", "sliding_attention"))
        modern.finish()
    usual = {"rope_theta": rules.defaults["rope_local_base_freq"]}
    return (
        Keys(full, f"{keys.where}, rotation of layers that do not slide", keys.defaults),
        Keys(local, f"{keys.where}, rotation of sliding layers", usual),
    )
