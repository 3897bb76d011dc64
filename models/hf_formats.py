"""Read in which format a Hugging Face checkpoint holds its weights, and which of them.

Names of formats and of parameter roles only: neither bytes nor values. A scheme that no precision
policy holds keeps the file's own words, because sizes can be read without it.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from .config import MoeConfig
from .hf_keys import Keys
from .hf_rules import FamilyRules

_PLAIN = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}

#: Roles of the matrices that a format narrows unless the file says otherwise. Routers never are:
#: the released codes hold them as plain parameters, which no scheme converts.
USUAL_ROLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "fp8": ("attention", "dense", "expert", "shared"),
        "int4": ("expert",),
        "mxfp4": ("expert",),
    }
)

#: Whether a scheme leaves a module as it is, by the module's name.
_Spares = Callable[[str], bool]


def read_released_format(
    keys: Keys,
    rules: FamilyRules,
    n_layers: int,
    moe: MoeConfig | None,
    recurrent_layers: tuple[int, ...] = (),
    following_layers: tuple[int, ...] = (),
) -> tuple[str, tuple[str, ...] | None]:
    """Read the format of the weights.

    Args:
        keys: of the file.
        rules: what the type of model fixes.
        n_layers: layers of the model.
        moe: its experts.
        recurrent_layers: those that do not attend.
        following_layers: those without an index of their own, in a model with one.

    Returns:
        "bf16", "fp16", "fp32", "fp8", "int4", "mxfp4", or words for anything else; and the roles
        that are narrow where they are not the usual ones of the format.

    Raises:
        ConfigError: a key of the wrong type, or a pattern that is not a regular expression.
    """
    block = keys.mapping("quantization_config")
    if block is None:
        dtype = keys.text("torch_dtype", "dtype", default="bfloat16")
        return _PLAIN.get(dtype, dtype), None
    # ModelOpt says its own name nowhere but beside its version.
    match block.text("quant_method", default="modelopt" if block.has("quant_algo") else None):
        case "fp8":
            found, spares = _fp8(block), _spared_by_name(block)
            roles: tuple[str, ...] = USUAL_ROLES["fp8"]
        case "mxfp4":
            found, spares, roles = "mxfp4", _spared_by_name(block), ("expert",)
        case "compressed-tensors":
            found, spares = _compressed(block)
            roles = ("attention", "dense", "expert", "shared", "head")
        case method:
            return method, None
    if found not in USUAL_ROLES:
        return found, None
    modules = _modules(
        rules,
        n_layers,
        moe,
        recurrent_layers,
        following_layers,
        has_query_latent=keys.has("q_lora_rank"),
    )
    narrow = []
    for role in (role for role in roles if role in modules):
        spared = {spares(name) for name in modules[role]}
        if len(spared) > 1:
            return f"{found} in part of {role}", None
        if not spared.pop():
            narrow.append(role)
    usual = [role for role in USUAL_ROLES[found] if role in modules]
    return found, None if narrow == usual else tuple(narrow)


def _fp8(block: Keys) -> str:
    shape, fmt = block.integers("weight_block_size", default=[]), block.text("fmt", default="e4m3")
    if shape == (128, 128) and fmt in ("e4m3", "float8_e4m3fn"):
        return "fp8"
    return f"fp8 {fmt} in blocks of {'x'.join(map(str, shape)) or 'a whole matrix'}"


def _compressed(block: Keys) -> tuple[str, _Spares]:
    """Read the scheme of the compressed-tensors library, and what it spares."""
    ignored = [_compile(block, "ignore", text, is_library=True) for text in block.texts("ignore")]
    groups = block.mapping("config_groups")
    named = {} if groups is None else groups.values
    if groups is None or len(named) != 1:
        return f"compressed-tensors with {len(named)} groups of layers", _spares_nothing
    group = groups.mapping(next(iter(named)))
    weights = None if group is None else group.mapping("weights")
    if group is None or weights is None:
        return "compressed-tensors without narrow weights", _spares_nothing
    targets = [
        _compile(group, "targets", text, is_library=True)
        for text in group.texts("targets")
        if text != "Linear"
    ]
    is_any = "Linear" in group.texts("targets") or not targets

    def spares(name: str) -> bool:
        is_target = is_any or any(pattern.match(name) for pattern in targets)
        return not is_target or any(pattern.match(name) for pattern in ignored)

    return _grid(weights), spares


def _spares_nothing(name: str) -> bool:
    return False


def _grid(weights: Keys) -> str:
    """Name the grid of numbers: "int4" is symmetric with a scale of each 32 values.

    Source: `QuantizationArgs` of compressed-tensors, for what holds where nothing is said.
    """
    word = f"{weights.text('type', default='int')}{weights.integer('num_bits', most=16)}"
    size = weights.integer("group_size", default=0, least=-1)  # -1 is a whole row
    unsaid = "group" if size > 0 else "channel" if size < 0 else "tensor"
    strategy = weights.text("strategy", default=unsaid)
    if not weights.boolean("symmetric", default=True):
        word = f"asymmetric {word}"
    if (strategy, size) == ("group", 32):
        return word
    return f"{word} per {strategy}" + (f" of {size}" if size > 0 else "")


def _spared_by_name(block: Keys) -> _Spares:
    """Read `modules_to_not_convert`, matched as transformers matches it."""
    texts = block.texts("modules_to_not_convert")
    patterns = [_compile(block, "modules_to_not_convert", text) for text in texts]

    def spares(name: str) -> bool:
        return any(map(name.endswith, texts)) or any(pattern.match(name) for pattern in patterns)

    return spares


def _compile(block: Keys, key: str, text: str, is_library: bool = False) -> re.Pattern[str]:
    """Make the pattern of a module's name.

    transformers reads every text as one, up to a boundary between parts of a name;
    compressed-tensors only those after "re:", and others as a whole name.
    """
    if is_library:
        text = text[3:] if text.startswith("re:") else rf"{re.escape(text)}$"
    else:
        text = rf"(?:{text})(?:(?<=\.)|(?=\.|$))"
    try:
        return re.compile(text)
    except re.error as problem:
        raise block.complain(key, f"regular expressions ({problem})") from problem


def _modules(
    rules: FamilyRules,
    n_layers: int,
    moe: MoeConfig | None,
    recurrent_layers: tuple[int, ...],
    following_layers: tuple[int, ...],
    *,
    has_query_latent: bool,
) -> dict[str, tuple[str, ...]]:
    """List the modules of each role; the first expert stands for all of its layer."""
    names = rules.names
    of_queries = (names.q_a, names.q_b) if has_query_latent else (names.q,)
    latent = (*of_queries, names.kv_a, names.kv_b)
    attention = (*(latent if rules.is_latent else names.qkv), names.output)
    expert = names.expert.format(0)
    experts = tuple(expert + part for part in names.expert_gate_up_down)
    if names.has_fused_experts:
        experts = (expert.removesuffix("."),)
    dense, shared = (
        tuple(prefix + part for part in names.gate_up_down) for prefix in (names.mlp, names.shared)
    )

    # Rates and decays, the last of the projections, are never narrow.
    recurrent = (*names.recurrent[: len(names.recurrent) // 2], names.recurrent_output)

    def of(layers: Iterable[int], modules: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(names.layer.format(i) + module for i in layers for module in modules)

    n_dense = n_layers if moe is None else min(moe.n_dense_layers, n_layers)
    sparse = range(n_dense, n_layers)
    # The weights of an index's heads are never narrow.
    index = (names.index_q, names.index_k) if rules.has_index else ()
    found = {
        "attention": of((i for i in range(n_layers) if i not in recurrent_layers), attention)
        + of(recurrent_layers, recurrent)
        + of((i for i in range(n_layers) if i not in following_layers), index),
        "dense": of(range(n_dense), dense),
        "expert": of(sparse, experts),
        "head": (names.head,),
    }
    if moe is not None and moe.n_shared:
        found["shared"] = of(sparse, shared)
    return {role: modules for role, modules in found.items() if modules}
