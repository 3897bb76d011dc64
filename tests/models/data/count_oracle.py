"""Count the parameters of every named model with Hugging Face's own classes.

Run with torch and transformers installed (made with torch 2.13.0 and transformers 5.23.0); it needs
no weights and no network, because modules are built on torch's meta device. Prints the numbers that
`tests/models/test_params.py` holds: all parameters with the biases of routers, then those a token
uses, without and with the input embedding. Kimi K2 is built as DeepSeek-V3, whose code it names;
Ling 2 and Kimi K3 have no class.
"""

import json
import os
from pathlib import Path
from typing import Any

#: Types that transformers calls otherwise.
UNLIKE = {"kimi_k2": "deepseek_v3", "minimax_m3": "minimax_m3_vl_text"}
CONFIGS = Path(__file__).parents[3] / "models" / "configs"


def count(fields: dict[str, Any]) -> tuple[int, int, int]:
    """Return the three counts of a parsed `config.json`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = dict(fields.get("text_config", fields))
    for key in ("quantization_config", "auto_map"):
        fields.pop(key, None)
    model_type = fields.pop("model_type")
    config = AutoConfig.for_model(UNLIKE.get(model_type, model_type), **fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    # Buffers that are stored, as the biases of routers are, but not tables of angles.
    stored = set(model.state_dict())
    tensors = dict(model.named_parameters())
    tensors |= {name: value for name, value in model.named_buffers() if name in stored}
    total = sum(tensor.numel() for tensor in tensors.values())
    experts = sum(tensor.numel() for name, tensor in tensors.items() if ".experts." in name)
    spellings = ("n_routed_experts", "num_local_experts", "num_experts")
    n_experts = next(filter(None, (getattr(config, key, None) for key in spellings)), 1)
    per_token = (getattr(config, key, None) for key in ("num_experts_per_tok", "top_k_experts"))
    used = experts * next(filter(None, per_token), 0) // n_experts
    table = 0 if config.tie_word_embeddings else model.get_input_embeddings().weight.numel()
    active = total - experts + used
    return total, active - table, active


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for path in sorted(CONFIGS.glob("*.json")):
        released = json.loads(path.read_text())
        if released["model_type"] not in ("bailing_moe_v2", "kimi_k3"):
            print(path.stem, *count(released))
