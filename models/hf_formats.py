"""Read in which format a Hugging Face checkpoint holds its weights, and which of them.

Names of formats and of parameter roles only: neither bytes nor values. A scheme that no precision
policy holds keeps the file's own words, because sizes can be read without it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from types import MappingProxyType

from .config import LayerKind, MoeConfig
from .hf_keys import Keys
from .hf_rules import FamilyRules

_PLAIN = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}

#: Roles of the matrices that a format narrows unless the file says otherwise. Routers never are:
#: the released codes hold them as plain parameters, which no scheme converts.
USUAL_ROLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "fp8": ("attention", "dense", "expert", "shared"),
        "fp8-column": ("attention", "dense", "expert", "shared"),
        "int4": ("expert",),
        "mxfp4": ("expert",),
        "nvfp4": ("attention", "dense", "expert", "shared"),
    }
)

#: What compressed-tensors calls blocks of 32 values that share a power of two.
_MXFP4 = "mxfp4-pack-quantized"

#: Whether a scheme leaves a module as it is, by the module's name.
_Spares = Callable[[str], bool]


def read_released_format(
    keys: Keys,
    rules: FamilyRules,
    n_layers: int,
    moe: MoeConfig | None,
    recurrent_layers: tuple[int, ...] = (),
    single_blocks: tuple[LayerKind, ...] = (),
    indexed_layers: tuple[int, ...] = (),
) -> tuple[str, tuple[str, ...] | None]:
    """Read the format of the weights.

    Args:
        keys: of the file.
        rules: what the type of model fixes.
        n_layers: layers of the model.
        moe: its experts.
        recurrent_layers: those that do not attend.
        single_blocks: the kind of each layer, where it is one block.
        indexed_layers: those with an index of their own.

    Returns:
        "bf16", "fp16", "fp32", "fp8", "fp8-column", "int4", "mxfp4", "nvfp4", or words for anything
        else; and the roles that are narrow where they are not the usual ones of the format.

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
        case "modelopt":
            found, spares = _modelopt(block)
            roles = ("attention", "dense", "expert", "shared", "head")
        case "compressed-tensors":
            found, spares = _compressed(block)
            roles = ("attention", "dense", "expert", "shared", "head")
        case method:
            return method, None
    if found not in USUAL_ROLES:
        return found, None
    layers = _layers_of_kinds(n_layers, moe, recurrent_layers, single_blocks)
    layers["indexed"] = list(indexed_layers)
    modules = _modules(rules, layers, moe, has_query_latent=keys.has("q_lora_rank"))
    narrow = []
    for role in (role for role in roles if role in modules):
        spared = {spares(name) for name in modules[role]}
        if len(spared) > 1:
            return f"{found} in part of {role}", None
        if not spared.pop():
            narrow.append(role)
    usual = [role for role in USUAL_ROLES[found] if role in modules]
    return found, None if narrow == usual else tuple(narrow)


def _layers_of_kinds(
    n_layers: int,
    moe: MoeConfig | None,
    recurrent_layers: tuple[int, ...],
    single_blocks: tuple[LayerKind, ...],
) -> dict[str, list[int]]:
    """List the layers that attend, that are recurrent, and that have either kind of MLP."""
    if single_blocks:
        own = {"attention": "unrotated", "recurrent": "recurrent", "dense": "dense", "moe": "moe"}
        return {
            kind: [i for i, found in enumerate(single_blocks) if found == word]
            for kind, word in own.items()
        }
    sparse = [] if moe is None else [i for i in range(n_layers) if moe.is_in_layer(i)]
    return {
        "attention": [i for i in range(n_layers) if i not in recurrent_layers],
        "recurrent": list(recurrent_layers),
        "dense": [i for i in range(n_layers) if i not in sparse],
        "moe": sparse,
    }


def _fp8(block: Keys) -> str:
    shape, fmt = block.integers("weight_block_size", default=[]), block.text("fmt", default="e4m3")
    if shape == (128, 128) and fmt in ("e4m3", "float8_e4m3fn"):
        return "fp8"
    return f"fp8 {fmt} in blocks of {'x'.join(map(str, shape)) or 'a whole matrix'}"


def _modelopt(block: Keys) -> tuple[str, _Spares]:
    """Read the scheme of NVIDIA ModelOpt, and what it spares: modules by names with wildcards.

    A module within a spared one is spared too; where nothing is listed, the head alone. Text models
    inside others are named behind "language_model.".
    """
    algorithm = block.text("quant_algo", default="")
    listed = (*block.texts("exclude_modules"), *block.texts("ignore")) or ("lm_head",)
    patterns = [text.removeprefix("language_model.") for text in listed]

    def spares(name: str) -> bool:
        parts = name.split(".")
        within = (".".join(parts[:n]) for n in range(1, len(parts) + 1))
        return any(fnmatchcase(module, pattern) for module in within for pattern in patterns)

    groups = block.mapping("config_groups")
    first = None if groups is None else groups.mapping(next(iter(groups.values), ""))
    weights = (None if first is None else first.mapping("weights")) or block
    match algorithm:
        case "NVFP4" if weights.integer("group_size", default=16) == 16:
            return "nvfp4", spares
        case "FP8":
            return "fp8-column", spares
    return f"modelopt {algorithm}".strip(), spares


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

    grid = _grid(weights)
    is_mx = _MXFP4 in (block.text("format", default=""), group.text("format", default=""))
    return ("mxfp4" if is_mx and grid == "float4" else grid), spares


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
    layers: Mapping[str, Sequence[int]],
    moe: MoeConfig | None,
    *,
    has_query_latent: bool,
) -> dict[str, tuple[str, ...]]:
    """List the modules of each role in the layers that have it.

    The first expert stands for all of its layer.
    """
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

    # Rates and decays, the last of the projections, are never narrow, unless they are in the only
    # one.
    n_narrow = max(1, len(names.recurrent) // 2)
    recurrent = (*names.recurrent[:n_narrow], names.recurrent_output)

    def of(layers: Sequence[int], modules: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(names.layer.format(i) + module for i in layers for module in modules)

    # The weights of an index's heads are never narrow.
    index = (names.index_q, names.index_k)
    found = {
        "attention": of(layers["attention"], attention)
        + of(layers["recurrent"], recurrent)
        + of(layers["indexed"], index),
        "dense": of(layers["dense"], dense),
        "expert": of(layers["moe"], experts),
        "head": (names.head,),
    }
    if moe is not None:
        is_plain = moe.d_latent is None or (rules.experts is not None and rules.experts.is_kimi_k3)
        latent = () if is_plain else (names.latent_in, names.latent_out)
        found["shared"] = of(layers["moe"], (*(shared if moe.n_shared else ()), *latent))
    return {role: modules for role, modules in found.items() if modules}
