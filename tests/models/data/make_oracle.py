"""Make the tiny checkpoints and logits of Hugging Face transformers that the tests compare with.

Not run by the tests. Needs torch 2.13.0 (CPU), transformers 5.24.0 and safetensors:
    OMP_NUM_THREADS=1 python tests/models/data/make_oracle.py [--out FOLDER] [--seed N] [NAME ...]
Writes `tiny/<name>/` with `config.json`, `model.safetensors` (tensor names of the hub) and
`logits.npz` beside itself and, without arguments, `rope.json`: rotary frequencies and softmax
scales of the released files in `models/configs/`.

What the classes initialise to a constant is randomised, or a test would not see it ignored. The
narrow checkpoints are written in their released layout by code of their own here; their logits are
those of transformers with the dequantised values. Kimi K3, of which transformers has no class, is
that of `kimi_k3_oracle`.
"""

import argparse
import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
#: Longer than the window of `GPT_OSS`.
PROMPT_SHAPE = (2, 20)
RELEASED = (
    "llama-2-70b",
    "llama-3.1-8b",
    "deepseek-v3",
    "kimi-k2-instruct",
    "kimi-k2.5",
    "qwen3-32b",
    "gpt-oss-120b",
    "glm-4.6",
)
ROTARY_CLASSES = {
    "llama": "Llama",
    "deepseek_v3": "DeepseekV3",
    "qwen3": "Qwen3",
    "gpt_oss": "GptOss",
    "glm4_moe": "Glm4Moe",
}

#: Prefixes of models' classes that are not those of their configurations.
UNLIKE = {"MiniMaxM3VL": "MiniMaxM3Sparse"}

#: A tensor as it is stored, under one or more names, and the values that it stands for.
Stored = tuple[dict[str, Any], Any]


def randomise_constants(model: Any) -> None:
    """Give biases, sinks and norm weights values that matter, and make latents small.

    Small latents let the eps of their norms be seen.
    """
    import torch

    latent_rank = getattr(model.config, "kv_lora_rank", 0)
    with torch.no_grad():
        for name, values in [*model.named_parameters(), *model.named_buffers()]:
            if not values.is_floating_point():
                continue
            if "bias" in name:
                values.normal_(0, 0.1)
            elif name.endswith("sinks"):
                values.normal_(0, 0.5)
            elif "norm" in name and name.endswith("weight"):
                # A class whose norms add one to what is stored begins with zeros.
                first = 0.5 if values.any() else -0.5
                values.uniform_(first, first + 1)
            elif name.endswith("A_log"):
                values.uniform_(-3, 0)  # so slow a fading that early tokens matter
            elif name.endswith(("layer_scalar", "mixer.D", "router.scale", "per_expert_scale")):
                values.uniform_(0.5, 1.5)
            elif name.endswith("q_a_proj.weight"):
                values *= 0.05
            elif name.endswith("kv_a_proj_with_mqa.weight"):
                values[:latent_rank] *= 0.05


# --- how released files store a tensor ---------------------------------------------------------


def as_f32(name: str, values: Any) -> Stored:
    """Store as it is."""
    return {name: values}, values


def as_bf16(name: str, values: Any) -> Stored:
    """Store in bfloat16; the router's correction stays in float32, as on the hub."""
    import torch

    narrow = values if name.endswith("e_score_correction_bias") else values.to(torch.bfloat16)
    return {name: narrow}, narrow.float()


def as_fp8(name: str, values: Any) -> Stored:
    """Store projections as e4m3 with one scale per 128x128 block, as DeepSeek-V3 is released."""
    import torch

    if not name.endswith("_proj.weight") and "kv_a_proj_with_mqa" not in name:
        return as_bf16(name, values)
    blocks = [-(-size // 128) for size in values.shape]
    scales = torch.empty(blocks)
    codes = torch.empty(values.shape, dtype=torch.float8_e4m3fn)
    wide = torch.empty(values.shape)
    for i, j in np.ndindex(*blocks):
        block = slice(128 * i, 128 * (i + 1)), slice(128 * j, 128 * (j + 1))
        scales[i, j] = values[block].abs().max() / 448
        codes[block] = (values[block] / scales[i, j]).to(torch.float8_e4m3fn)
        wide[block] = codes[block].float() * scales[i, j]
    return {name: codes, f"{name}_scale_inv": scales}, wide


def as_int4(name: str, values: Any) -> Stored:
    """Store routed experts as compressed-tensors packs int4: eight codes in an int32, low first."""
    import torch

    if ".experts." not in name:
        return as_bf16(name, values)
    rows, columns = values.shape
    groups = values.reshape(rows, columns // 32, 32)
    scales = (groups.abs().amax(-1) / 7.5).to(torch.bfloat16)
    codes = (groups / scales.float()[..., None]).round().clamp(-8, 7)
    wide = (codes * scales.float()[..., None]).reshape(rows, columns)
    nibbles = (codes.to(torch.int64) + 8).reshape(rows, columns // 8, 8)
    words = (nibbles << (4 * torch.arange(8))).sum(-1)
    packed = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
    stem = name.removesuffix("weight")
    stored = {
        stem + "weight_packed": packed,
        stem + "weight_scale": scales,
        stem + "weight_shape": torch.tensor([rows, columns]),
    }
    return stored, wide


def as_mxfp4(name: str, values: Any) -> Stored:
    """Store expert matrices as MXFP4 blocks of 32 along their inputs, as gpt-oss is released.

    The dequantised values are those of transformers' own conversion.
    """
    import torch
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
        return as_bf16(name, values)
    matrices = values.transpose(1, 2)  # [expert, out, in]
    blocks = matrices.reshape(*matrices.shape[:2], -1, 32)
    exponents = blocks.abs().amax(-1).log2().floor() - 2
    scaled = blocks / torch.exp2(exponents)[..., None]
    magnitudes = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    nearest = (scaled.abs()[..., None] - magnitudes).abs().argmin(-1)
    codes = (nearest + 8 * (scaled < 0)).to(torch.uint8)
    packed = codes[..., 0::2] | (codes[..., 1::2] << 4)
    scales = (exponents + 127).to(torch.uint8)
    wide = convert_moe_packed_tensors(packed, scales, dtype=torch.float32)
    return {f"{name}_blocks": packed, f"{name}_scales": scales}, wide


FORMS: dict[str, Callable[[str, Any], Stored]] = {
    "f32": as_f32,
    "bf16": as_bf16,
    "fp8": as_fp8,
    "int4": as_int4,
    "mxfp4": as_mxfp4,
}
#: What the released configurations of each form say.
QUANTIZATION: dict[str, dict[str, Any]] = {
    "fp8": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "int4": {
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "group_size": 32,
                    "num_bits": 4,
                    "strategy": "group",
                    "symmetric": True,
                    "type": "int",
                },
            }
        },
        "format": "pack-quantized",
        "ignore": [
            "lm_head",
            "re:.*self_attn.*",
            "re:.*shared_experts.*",
            "re:.*mlp\\.(gate|up|gate_up|down)_proj.*",
        ],
        "quant_method": "compressed-tensors",
    },
    "mxfp4": {
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
        "quant_method": "mxfp4",
    },
}


# --- a model type that transformers lacks ------------------------------------------------------

LING_NAMES = {
    "model.embed_tokens": "model.word_embeddings",
    "self_attn.o_proj": "attention.dense",
    "self_attn.q_norm": "attention.query_layernorm",
    "self_attn.k_norm": "attention.key_layernorm",
    "mlp.gate.e_score_correction_bias": "mlp.gate.expert_bias",
}
#: Keys of its configuration that are not those of GLM.
LING_KEYS = {
    "n_routed_experts": "num_experts",
    "n_shared_experts": "num_shared_experts",
}
LING_ONLY = {
    "architectures": ["BailingMoeV2ForCausalLM"],
    "model_type": "bailing_moe_v2",
    "use_bias": False,
    "use_qkv_bias": False,
    "moe_router_enable_expert_bias": True,
    "score_function": "sigmoid",
    "rope_theta": 1e6,
    "rope_scaling": None,
    "partial_rotary_factor": 0.5,
}


def as_ling(fields: dict[str, Any], tensors: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Rewrite a GLM checkpoint as one of Ling: its keys, names and joined q, k and v.

    Source:
        `BailingMoeV2Attention` and `BailingMoeV2Gate` in models/modeling_bailing_moe_v2.py of
        github.com/inclusionAI/Ling-V2.
    """
    import torch

    left_out = ("rope_parameters", "attention_bias", *LING_KEYS)
    ours = {key: value for key, value in fields.items() if key not in left_out}
    ours |= {theirs: fields[key] for key, theirs in LING_KEYS.items()} | LING_ONLY
    renamed = {}
    for name, values in tensors.items():
        stem, separator, rest = name.partition("self_attn.q_proj")
        if separator:
            parts = [tensors[f"{stem}self_attn.{part}_proj{rest}"] for part in "qkv"]
            renamed[f"{stem}attention.query_key_value{rest}"] = torch.cat(parts)
        elif "k_proj" not in name and "v_proj" not in name:
            for theirs, own in LING_NAMES.items():
                name = name.replace(theirs, own)
            renamed[name] = values
    return ours, renamed


def as_mimo(
    fields: dict[str, Any], tensors: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rewrite a Qwen2 checkpoint as one of MiMo, with a norm of its prediction layer.

    Source:
        `MiMoForCausalLM` in modeling_mimo.py of XiaomiMiMo/MiMo-7B-Base, a `Qwen2ForCausalLM` whose
        model has `mtp_layers` beside its layers (second-hand: from vLLM's loader of these files).
    """
    own = {"architectures": ["MiMoForCausalLM"], "model_type": "mimo", "attention_bias": True}
    ahead = {"model.mtp_layers.0.input_layernorm.weight": tensors["model.norm.weight"].clone()}
    return fields | own | {"num_nextn_predict_layers": 1, "use_mrope": False}, tensors | ahead


def as_qwen_vl(tensors: dict[str, Any]) -> dict[str, Any]:
    """Turn fused experts `[experts, out, in]` over, as Qwen3-VL is released.

    Source:
        `Qwen3VLMoeTextExperts` of transformers 4.57, of which the release is; 5.24 turns them over
        as it loads.
    """
    return {
        name: values.transpose(1, 2) if ".mlp.experts." in name else values
        for name, values in tensors.items()
    }


def as_qwen_3_5(tensors: dict[str, Any]) -> dict[str, Any]:
    """Put the experts of a layer into two tensors `[experts, out, in]`, as Qwen3.5 is released.

    Source:
        `split_fused_expert_weights` in lightllm's models/qwen3_5_moe; transformers 5.24 reads such
        files and writes experts one by one.
    """
    import torch

    fused = {name: values for name, values in tensors.items() if ".mlp.experts." not in name}
    for layer in {name.partition(".mlp.experts.")[0] for name in tensors.keys() - fused.keys()}:
        stem, parts = f"{layer}.mlp.experts.", ("gate_proj", "up_proj", "down_proj")
        n = sum(name.startswith(stem) for name in tensors) // len(parts)
        gate, up, down = (
            torch.stack([tensors[f"{stem}{i}.{part}.weight"] for i in range(n)]) for part in parts
        )
        fused |= {f"{stem}gate_up_proj": torch.cat((gate, up), 1), f"{stem}down_proj": down}
    return fused


#: What the released file of Kimi Linear says beside the keys of its class, and what it lacks.
KIMI_LINEAR_ONLY = {
    "mla_use_nope": True,
    "moe_layer_freq": 1,
    "moe_router_activation_func": "sigmoid",
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "use_grouped_topk": True,
}
NOT_KIMI_LINEAR = (
    *("layer_types", "mlp_layer_types", "linear_head_dim", "linear_num_heads"),
    *("linear_conv_kernel_dim", "n_routed_experts", "qk_head_dim", "rope_interleave"),
)


def as_kimi_linear(
    fields: dict[str, Any], tensors: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write what Kimi Linear's files hold: the recurrence's keys in a part, layers from 1 on.

    transformers gives dense layers the names of mixtures as it writes.

    Source:
        `KimiLinearConfig` of transformers 5.24, which reads both; for the dense layers
        `KimiDecoderLayer` in modeling_kimi.py of moonshotai/Kimi-Linear-48B-A3B-Instruct.
    """
    kinds = list(enumerate(fields["layer_types"], 1))
    of_recurrence = {
        "full_attn_layers": [i for i, kind in kinds if kind == "full_attention"],
        "head_dim": fields["linear_head_dim"],
        "kda_layers": [i for i, kind in kinds if kind == "linear_attention"],
        "num_heads": fields["linear_num_heads"],
        "short_conv_kernel_size": fields["linear_conv_kernel_dim"],
    }
    rest = {key: value for key, value in fields.items() if key not in NOT_KIMI_LINEAR}
    rest |= KIMI_LINEAR_ONLY | {"linear_attn_config": of_recurrence}
    dense = re.compile(r"block_sparse_moe\.(?=(gate|up|down)_proj)")
    return rest, {dense.sub("mlp.", name): values for name, values in tensors.items()}


# --- one checkpoint ----------------------------------------------------------------------------


def make(name: str, folder: Path, seed: int = 0) -> None:
    """Write one checkpoint and the logits that transformers computes from it.

    Args:
        name: one of `tiny_configs.CASES`.
        folder: gets a folder of that name.
        seed: of weights and tokens.
    """
    # Imported here: the test run collects this file, and needs none of these.
    import torch
    import transformers
    from safetensors.torch import load_file, save_file
    from tiny_configs import CASES

    torch.set_num_threads(1)
    family, fields, form = CASES[name]
    torch.manual_seed(seed)
    config = getattr(transformers, family + "Config")(**fields)
    text = fields.get("text_config", fields)
    does = "ForCausalLM" if text is fields else "ForConditionalGeneration"
    model_class = getattr(transformers, UNLIKE.get(family, family) + does)
    model = model_class(config).eval().float()
    randomise_constants(model)
    # The last words of a model with pictures stand for these.
    words = text["vocab_size"] - (0 if text is fields else 4)
    tokens = np.random.default_rng(seed).integers(3, words, size=PROMPT_SHAPE)
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as wide_folder:
        # What transformers saves has the hub's tensor names; what it reads back is what is stored.
        model.save_pretrained(wide_folder)
        saved = json.loads((Path(wide_folder) / "config.json").read_text())
        wide_file = Path(wide_folder) / "model.safetensors"
        stored, wide = {}, {}
        for tensor, values in load_file(wide_file).items():
            parts, wide[tensor] = FORMS[form](tensor, values)
            stored |= parts
        save_file(wide, wide_file, metadata={"format": "pt"})
        model = model_class.from_pretrained(
            wide_folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    # The whole of Llama 4 fails without a picture in transformers 5.24: it asks for its features.
    reader = model.language_model if family == "Llama4" else model
    with torch.no_grad():
        logits = reader(input_ids=torch.tensor(tokens)).logits.float().numpy()
    if name.startswith("kimi_k2"):
        saved["model_type"] = "kimi_k2"
    if name == "mimo":
        saved, stored = as_mimo(saved, stored)
    if name == "ling":
        saved, stored = as_ling(saved, stored)
    if name == "qwen3_vl_moe":
        stored = as_qwen_vl(stored)
    if name == "kimi_linear":
        saved, stored = as_kimi_linear(saved, stored)
    if name == "qwen3_5_moe":
        stored = as_qwen_3_5(stored)
    if form != "f32":
        saved["dtype"] = "bfloat16"
    if form in QUANTIZATION:
        saved["quantization_config"] = QUANTIZATION[form]
    (target / "config.json").write_text(json.dumps(saved, indent=1) + "\n")
    stored = {tensor: values.contiguous() for tensor, values in stored.items()}
    save_file(stored, target / "model.safetensors", metadata={"format": "pt"})
    np.savez_compressed(target / "logits.npz", tokens=tokens, logits=logits)
    n_bytes = sum(file.stat().st_size for file in target.iterdir())
    print(
        f"{name}: {n_bytes} bytes, |logit| max {np.abs(logits).max():.2f}, std {logits.std():.2f}"
    )


def rope_facts(name: str, **scaling: float) -> dict[str, Any]:
    """Return what transformers computes from a released configuration in `models/configs/`.

    Args:
        name: of the file.
        scaling: further keys of its `rope_scaling`.
    """
    import importlib

    import transformers

    configs = HERE.parents[2] / "models" / "configs"
    fields = json.loads((configs / f"{name}.json").read_text())
    fields = fields.get("text_config", fields)
    if scaling:
        fields["rope_scaling"] |= scaling
    model_type = fields.pop("model_type")
    model_type = "deepseek_v3" if model_type == "kimi_k2" else model_type
    family = ROTARY_CLASSES[model_type]
    module = importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
    config = getattr(transformers, f"{family}Config")(**fields)
    rotary = getattr(module, f"{family}RotaryEmbedding")(config)
    facts: dict[str, Any] = {}
    if model_type == "deepseek_v3":
        # A narrow copy: the scale depends on the head width and the rope rule only.
        config.hidden_size, config.q_lora_rank, config.kv_lora_rank = 8, 8, 8
        facts["softmax_scale"] = module.DeepseekV3Attention(config, 0).scaling
    facts["inverse_frequencies"] = rotary.inv_freq.tolist()
    facts["attention_factor"] = rotary.attention_scaling
    return facts


def main() -> None:
    """Make what the command line names, by default everything."""
    import kimi_k3_oracle
    from tiny_configs import CASES

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--out", type=Path, default=HERE / "tiny")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for name in given.names or (*CASES, *kimi_k3_oracle.CASES):
        own = kimi_k3_oracle.make if name in kimi_k3_oracle.CASES else make
        own(name, given.out, given.seed)
    if not given.names and given.out == HERE / "tiny":
        facts = {name: rope_facts(name) for name in RELEASED}
        said = rope_facts("deepseek-v3", attention_factor=0.75)
        facts["deepseek-v3 with attention_factor 0.75"] = said
        (HERE / "rope.json").write_text(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
