"""Read what Step's `config.json` says beside the usual keys: layers, heads, rotations, experts.

Read are the keys of the hub (`attention_other_setting`, `moe_layers_enum`, values of each layer in
lists) and those of transformers 5. Lists may go on with the layers that predict. Not modelled:
layers whose MLPs are clamped; they are refused.

Source: `Step3p7TextConfig` of Hugging Face transformers 5.24; the hub's keys that it does not know
are those of its publisher's own class, and may only repeat what this one does.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .config_parts import GqaConfig
from .hf_keys import MOST_LAYERS, Keys
from .hf_rope import rotation_parts
from .hf_rules import FamilyRules

#: What its publisher's class can switch, as that of transformers always has it.
_FIXED: Mapping[str, tuple[object, ...]] = {
    "gating": (True, "per-head"),
    "use_head_wise_attn_gate": (True,),
    "use_mfa": (False,),
    "att_impl_type": ("GQA",),
    "use_moe": (True,),
    "use_moe_router_bias": (True,),
    "need_fp32_gate": (True,),
    "norm_expert_weight": (True,),
    "moe_router_activation": ("sigmoid",),
    "moe_every_n_layer": (1,),
    "n_shared_experts": (1,),
}
#: Layers with a dense MLP, all at the start, where the file does not say.
_DENSE_LAYERS = 3


def read_step_windows(keys: Keys, n_layers: int) -> tuple[int | None, tuple[int, ...]]:
    """Return how many keys a sliding layer sees, its own included, and which layers slide.

    Args:
        keys: of the file.
        n_layers: layers of the model.

    Raises:
        ConfigError: the file asks for what its class does not make.
    """
    for key, allowed in _FIXED.items():
        keys.must_be(key, *allowed)
    keys.read.update(("mtp_layer_types", "mtp_mlp_layer_types"))  # of layers that predict
    kinds = _of_layers(keys, "layer_types", keys.texts("layer_types"), n_layers)
    if not set(kinds) <= {"full_attention", "sliding_attention"}:
        raise keys.complain("layer_types", 'a list of "full_attention" or "sliding_attention"')
    sliding = tuple(layer for layer, kind in enumerate(kinds) if kind == "sliding_attention")
    keys.must_be("use_rope_layers", [], *([True] * (n_layers + n) for n in (0, _ahead(keys))))
    window = keys.integer("sliding_window") if sliding else None
    keys.read.add("sliding_window")
    return window, sliding


def read_step_heads(
    keys: Keys, read: GqaConfig, n_layers: int, sliding_layers: tuple[int, ...]
) -> tuple[GqaConfig, GqaConfig]:
    """Return the attention of layers that see all keys, and of sliding ones.

    Args:
        keys: of the file.
        read: what the usual keys say, with the window.
        n_layers: layers of the model.
        sliding_layers: those that slide.

    Raises:
        ConfigError: the file asks for other heads than its class makes.
    """
    scalar = keys.optional_number("query_pre_attn_scalar")
    is_usual = scalar is None or scalar == read.head_dim
    full = replace(
        read, window=None, head_gated=True, scale=None if is_usual else (scalar or 1.0) ** -0.5
    )
    n_heads = keys.integer("num_sliding_attention_heads", default=_other_heads(keys, full))
    by_layer = keys.mapping("per_layer_config")
    if by_layer is not None:
        own = {str(layer): {"num_attention_heads": n_heads} for layer in sliding_layers}
        if dict(by_layer.values) != own:
            raise keys.complain("per_layer_config", f"{n_heads} heads for each sliding layer")
    return full, replace(full, n_heads=n_heads, window=read.window)


def _other_heads(keys: Keys, full: GqaConfig) -> int:
    """Return the query heads of sliding layers as the hub says it."""
    other = keys.mapping("attention_other_setting")
    if other is None:
        return full.n_heads
    other.must_be("attention_type", "sliding_attention")
    other.must_be("num_attention_groups", full.n_kv_heads)
    for key in ("head_dim", "true_head_dim"):
        other.must_be(key, full.head_dim)
    n_heads = other.integer("num_attention_heads", default=full.n_heads)
    other.finish()
    return n_heads


def read_step_rotations(
    keys: Keys, rules: FamilyRules, n_layers: int, sliding_layers: tuple[int, ...]
) -> tuple[Keys, Keys]:
    """Return the keys of the rotation of layers that see all keys, and of those that slide.

    On the hub `rope_theta` and `partial_rotary_factors` hold a number of each layer, and
    `rope_scaling` is about layers that see all keys.

    Args:
        keys: of the file.
        rules: of its type.
        n_layers: layers of the model.
        sliding_layers: those that slide.

    Raises:
        ConfigError: layers of one kind differ, or the file has both spellings.
    """
    keys.must_be("yarn_only_types", ["full_attention"])
    if keys.has("rope_parameters"):
        return rotation_parts(keys, rules)
    thetas = _numbers(keys, "rope_theta", n_layers, rules.defaults["rope_theta"])
    shares = _numbers(keys, "partial_rotary_factors", n_layers, 1.0)
    keys.read.add("rope_scaling")
    parts = []
    for of_sliding in (False, True):
        layers = [i for i in range(n_layers) if (i in sliding_layers) is of_sliding] or [0]
        for key, values in (("rope_theta", thetas), ("partial_rotary_factors", shares)):
            if any(values[i] != values[layers[0]] for i in layers):
                raise keys.complain(key, "the same for all layers of one kind")
        i = layers[0]
        part = {"rope_theta": thetas[i], "partial_rotary_factor": shares[i]}
        if not of_sliding and keys.has("rope_scaling"):
            part["rope_scaling"] = keys.values["rope_scaling"]
        word = "sliding layers" if of_sliding else "layers that do not slide"
        parts.append(Keys(part, f"{keys.where}, rotation of {word}"))
    return parts[0], parts[1]


def read_step_dense_layers(keys: Keys, n_layers: int) -> int:
    """Return how many layers, all at the start, have a dense MLP.

    Args:
        keys: of the file.
        n_layers: layers of the model.

    Raises:
        ConfigError: others have one, or the file says it twice and not the same, or it clamps MLPs.
    """
    for key in ("swiglu_limits", "swiglu_limits_shared"):
        given = keys.values.get(key)
        keys.read.add(key)
        if given is not None and (not isinstance(given, list) or any(given)):
            raise keys.complain(key, "0 or null for every layer: clamped MLPs are not modelled")
    every = n_layers + _ahead(keys)
    listed = _listed(keys)
    has_experts = [i >= _DENSE_LAYERS if listed is None else i in listed for i in range(every)]
    usual = ["sparse" if has else "dense" for has in has_experts]
    said = keys.texts("mlp_layer_types")
    kinds = _of_layers(keys, "mlp_layer_types", said or tuple(usual), n_layers)
    n_dense = [*kinds, "sparse"].index("sparse")
    if kinds != ("dense",) * n_dense + ("sparse",) * (n_layers - n_dense):
        key = "mlp_layer_types" if said else "moe_layers_enum"
        raise keys.complain(key, "experts in all layers but the first ones")
    if listed is not None and list(kinds) != usual[:n_layers]:
        raise keys.complain("moe_layers_enum", "that of 'mlp_layer_types'")
    keys.must_be("first_k_dense_replace", n_dense)
    return n_dense


def _ahead(keys: Keys) -> int:
    """Return how many layers predict, as far as lists go on with them."""
    spellings = ("num_nextn_predict_layers", "num_mtp_layers")
    return keys.integer(*spellings, default=0, least=0, most=MOST_LAYERS)


def _of_layers(keys: Keys, key: str, values: tuple[Any, ...], n_layers: int) -> tuple[Any, ...]:
    """Return the values of the model's own layers."""
    if values and len(values) not in (n_layers, n_layers + _ahead(keys)):
        raise keys.complain(key, f"a list with a value for each of {n_layers} layers")
    return values[:n_layers]


def _numbers(keys: Keys, key: str, n_layers: int, usual: float) -> tuple[Any, ...]:
    """Return a number of each layer; a single one is that of all, as the usual one is."""
    keys.read.add(key)
    given = keys.values.get(key)
    values = given if isinstance(given, list) else [usual if given is None else given] * n_layers
    return _of_layers(keys, key, tuple(values), n_layers)


def _listed(keys: Keys) -> frozenset[int] | None:
    """Return the layers with experts in `moe_layers_enum`, a list or its numbers in a string."""
    given = keys.values.get("moe_layers_enum")
    keys.read.add("moe_layers_enum")
    if given is None:
        return None
    items = given.split(",") if isinstance(given, str) else given
    try:
        return frozenset(int(item) for item in items if str(item).strip())
    except (TypeError, ValueError):
        raise keys.complain("moe_layers_enum", "numbers of layers") from None
