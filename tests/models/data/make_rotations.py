"""Ask Hugging Face transformers how released models rotate, and keep its answers.

Run where torch and transformers are installed: `python make_rotations.py [CONFIG ...]`. Writes
`rotations.json` beside itself: of every file in `models/configs/`, and of the `config.json` files
named, whose keys about the text are kept too, the inverse frequencies and the factor of cosines and
sines, by kind of layer. Left out are models that rotate nothing or that transformers lacks.
"""

import importlib
import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CONFIGS = HERE.parents[2] / "models" / "configs"
#: Types that transformers has under another name.
ALIASES = {
    "kimi_k2": "deepseek_v3",
    "mimo": "qwen2",
    "minimax_m3": "minimax_m3_vl_text",
    "step3p7": "step3p5",
}
#: Keys that say nothing about the network, or too much: of each module one name.
DROPPED = ("quantization_config", "auto_map", "transformers_version", "dtype", "torch_dtype")


def text_part(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of the language model."""
    inner = fields.get("text_config", fields)
    kept = {key: value for key, value in inner.items() if key not in DROPPED}
    if "model_type" not in kept:  # transformers knows the text part by its own type
        kept["model_type"] = f"{fields['model_type']}_text"
    return kept


def rotations(fields: dict[str, Any]) -> dict[str, Any]:
    """Return what the rotary class of a type makes of a configuration, by kind of layer."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = fields["model_type"]
    kind_of_config = CONFIG_MAPPING[ALIASES.get(model_type, model_type)]
    own = {key: value for key, value in fields.items() if key != "model_type"}
    module = importlib.import_module(kind_of_config.__module__.replace("configuration", "modeling"))
    classes = {
        name: found
        for name, found in inspect.getmembers(module, inspect.isclass)
        if name.endswith("RotaryEmbedding") and found.__module__ == module.__name__
    }
    text = [name for name in classes if "Text" in name]
    plain = [name for name in classes if not any(w in name for w in ("Vision", "Audio"))]
    rotary = classes[(text or plain)[0]](kind_of_config(**own))
    facts = {}
    for name, buffer in rotary.named_buffers():
        if name.endswith("inv_freq") and "original" not in name:
            kind = name.removesuffix("inv_freq")
            facts[kind.rstrip("_") or "all"] = {
                "inverse_frequencies": [float(f"{value:.9g}") for value in buffer.tolist()],
                "attention_factor": getattr(rotary, f"{kind}attention_scaling"),
            }
    return facts


def main() -> None:
    """Write the answers about all files."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    found: dict[str, Any] = {}
    for path in [*sorted(CONFIGS.glob("*.json")), *map(Path, sys.argv[1:])]:
        fields = text_part(json.loads(path.read_text()))
        try:
            facts = rotations(fields)
        except (KeyError, IndexError) as problem:
            print(f"{path.name}: left out ({type(problem).__name__} {problem})")
            continue
        is_own = path.parent == CONFIGS
        found[path.stem] = {"rotations": facts} | ({} if is_own else {"config": fields})
    text = ",\n".join(f"{json.dumps(name)}: {json.dumps(found[name])}" for name in found)
    (HERE / "rotations.json").write_text(f"{{\n{text}\n}}\n")


if __name__ == "__main__":
    main()
