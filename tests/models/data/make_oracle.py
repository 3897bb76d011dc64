"""Make the tiny checkpoints and logits of Hugging Face transformers that the tests compare with.

Not run by the tests. Needs torch 2.13.0 (CPU) and transformers 5.23.0:
    OMP_NUM_THREADS=1 python tests/models/data/make_oracle.py
Writes `<name>.json` (configuration), `<name>.safetensors` and `<name>_logits.npz` beside itself,
and `rope.json`: rotary frequencies and softmax scales of the released files in `configs/`.
What the classes initialise to a constant (router bias, norms) is randomised, or a test would not
see it ignored.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
COMMON = {
    "vocab_size": 64,
    "hidden_size": 32,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.15,
}
YARN = {
    "rope_type": "yarn",
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 64,
}
LATENT = {
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "moe_intermediate_size": 4,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "first_k_dense_replace": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "rope_interleave": True,
    "rms_norm_eps": 1e-5,
}
LLAMA = COMMON | {
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}
LLAMA_TIED = COMMON | {
    "num_hidden_layers": 1,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}
DEEPSEEK = (
    COMMON
    | LATENT
    | {
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
        "rope_parameters": YARN
        | {"rope_theta": 1e4, "factor": 40.0, "beta_fast": 32, "beta_slow": 1},
    }
)
KIMI = (
    COMMON
    | LATENT
    | {
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "n_routed_experts": 8,
        "num_experts_per_tok": 4,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 2.827,
        "rope_parameters": YARN
        | {"rope_theta": 5e4, "factor": 32.0, "beta_fast": 1.0, "beta_slow": 1.0},
    }
)
# transformers has no kimi_k2 class; Moonshot's guide runs the model as deepseek_v3.
CASES = {
    "llama": ("Llama", LLAMA),
    "llama_tied": ("Llama", LLAMA_TIED),
    "deepseek_v3": ("DeepseekV3", DEEPSEEK),
    "kimi_k2": ("DeepseekV3", KIMI),
}


def randomise_constants(model: Any) -> None:
    """Give biases and norm weights values that matter."""
    import torch

    with torch.no_grad():
        for name, values in [*model.named_parameters(), *model.named_buffers()]:
            if values.is_floating_point() and "bias" in name:
                values.normal_(0, 0.1)
            elif "norm" in name and name.endswith("weight"):
                values.uniform_(0.5, 1.5)


def make(name: str, tokens: np.ndarray) -> None:
    """Write the three files of one model."""
    # Imported here: the test run collects this file and has neither package.
    import torch
    import transformers

    torch.set_num_threads(1)
    family, fields = CASES[name]
    torch.manual_seed(0)
    config = getattr(transformers, family + "Config")(**fields)
    config._attn_implementation = "eager"
    model = getattr(transformers, family + "ForCausalLM")(config).eval().float()
    randomise_constants(model)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(tokens)).logits.float().numpy()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        shutil.copy(Path(folder) / "model.safetensors", HERE / f"{name}.safetensors")
        saved = json.loads((Path(folder) / "config.json").read_text())
    if name == "kimi_k2":
        saved["model_type"] = "kimi_k2"
    (HERE / f"{name}.json").write_text(json.dumps(saved, indent=1) + "\n")
    np.savez_compressed(HERE / f"{name}_logits.npz", tokens=tokens, logits=logits)
    print(f"{name}: |logit| max {np.abs(logits).max():.3f}, std {logits.std():.3f}")


def rope_facts(name: str) -> dict[str, Any]:
    """Return what transformers computes from a released configuration in `configs/`."""
    import transformers
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek
    from transformers.models.llama import modeling_llama as llama

    fields = json.loads((HERE / "configs" / f"{name}.json").read_text())
    fields = fields.get("text_config", fields)
    facts: dict[str, Any] = {}
    if fields.pop("model_type") == "llama":
        rotary = llama.LlamaRotaryEmbedding(transformers.LlamaConfig(**fields))
    else:
        config = transformers.DeepseekV3Config(**fields)
        rotary = deepseek.DeepseekV3RotaryEmbedding(config)
        # A narrow copy: the scale depends on the head width and the rope rule only.
        config.hidden_size, config.q_lora_rank, config.kv_lora_rank = 8, 8, 8
        facts["softmax_scale"] = deepseek.DeepseekV3Attention(config, 0).scaling
    facts["inverse_frequencies"] = rotary.inv_freq.tolist()
    facts["attention_factor"] = rotary.attention_scaling
    return facts


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    prompt = np.random.default_rng(0).integers(3, COMMON["vocab_size"], size=(2, 12))
    for case in CASES:
        make(case, prompt)
    released = ("llama-2-70b", "llama-3.1-8b", "deepseek-v3", "kimi-k2-instruct", "kimi-k2.5")
    facts = {name: rope_facts(name) for name in released}
    (HERE / "rope.json").write_text(json.dumps(facts) + "\n")
