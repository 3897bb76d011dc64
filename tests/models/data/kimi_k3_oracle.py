"""Make the tiny checkpoints of Kimi K3 and their logits, by plain NumPy in float64.

Hugging Face transformers has no class for it, so this one is written from the published
implementation, `models/kimi_k3` of vLLM 0.33 (Apache-2.0; its facts, none of its code), tensor by
tensor and token by token, and shares nothing with this program. Run by `make_oracle.py`; the values
of the narrow file are those of a table of codes of its own.
"""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

Tensors = dict[str, np.ndarray]

#: Kimi K3's own file with small sizes: two layers of each kind of attention behind a first one,
#: which alone is dense; blocks of two layers, of which the last is not full. A bound of decays and
#: limits of activations that matter.
TEXT: dict[str, Any] = {
    "model_type": "kimi_linear",
    "architectures": ["KimiLinearForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 24,
    "intermediate_size": 24,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-3,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "hidden_act": "situ",
    "activation_situ_beta": 1.2,
    "activation_situ_linear_beta": 1.5,
    "attn_res_block_size": 2,
    "q_lora_rank": 10,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "mla_use_nope": True,
    "mla_use_output_gate": True,
    "num_experts": 6,
    "num_experts_per_token": 3,
    "num_shared_experts": 2,
    "moe_intermediate_size": 10,
    "routed_expert_hidden_size": 12,
    "latent_moe_use_norm": True,
    "moe_renormalize": True,
    "moe_router_activation_func": "sigmoid",
    "moe_layer_freq": 1,
    "first_k_dense_replace": 1,
    "num_expert_group": 1,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "use_grouped_topk": True,
    "routed_scaling_factor": 1.0,
    "num_nextn_predict_layers": 0,
    "linear_attn_config": {
        "full_attn_layers": [3, 5],
        "kda_layers": [1, 2, 4],
        "gate_lower_bound": -0.8,
        "head_dim": 6,
        "num_heads": 4,
        "short_conv_kernel_size": 4,
        "use_full_rank_gate": True,
    },
}
#: Widths of whole blocks, of so few experts that the file stays small.
NARROW = {"routed_expert_hidden_size": 32, "moe_intermediate_size": 32}
QUANTIZATION: dict[str, Any] = {
    "config_groups": {
        "group_0": {
            "format": "mxfp4-pack-quantized",
            "targets": ["Linear"],
            "weights": {
                "group_size": 32,
                "num_bits": 4,
                "scale_dtype": "torch.uint8",
                "strategy": "group",
                "symmetric": True,
                "type": "float",
            },
        }
    },
    "format": "mxfp4-pack-quantized",
    "ignore": [
        "re:.*self_attn.*",
        "re:.*shared_experts.*",
        "re:.*mlp\\.(gate|up|gate_up|down)_proj.*",
        "re:.*lm_head.*",
    ],
    "quant_method": "compressed-tensors",
}
CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "kimi_k3": (TEXT, False),
    "kimi_k3_mxfp4": (TEXT | NARROW | {"quantization_config": QUANTIZATION}, True),
}
PROMPT_SHAPE = (2, 12)
PREFIX = "language_model."
#: Of the committed files: of the first few, that with which float32 is nearest to float64. Heads of
#: six values may cancel, and norms then enlarge what rounding left.
FIRST_SEED = 1
MAGNITUDES = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


# --- random tensors, as files hold them --------------------------------------------------------


def random_tensors(cfg: dict[str, Any], rng: np.random.Generator) -> Tensors:
    """Draw every tensor; spreads are such that each part of the model matters."""
    d, made = cfg["hidden_size"], {}

    def matrix(name: str, n_out: int, n_in: int, spread: float = 0.15) -> None:
        made[f"{name}.weight"] = rng.normal(0, spread, (n_out, n_in))

    def norm(name: str, n: int) -> None:
        made[f"{name}.weight"] = rng.uniform(0.5, 1.5, n)

    def mlp(name: str, width: int) -> None:
        for part in ("gate", "up"):
            matrix(f"{name}.{part}_proj", width, d, 0.2)
        matrix(f"{name}.down_proj", d, width)

    def states(name: str) -> None:
        norm(f"{name}_norm", d)
        matrix(f"{name}_proj", 1, d, 0.25)

    matrix("model.embed_tokens", cfg["vocab_size"], d, 1.0)
    matrix("lm_head", cfg["vocab_size"], d, 0.15)
    norm("model.norm", d)
    states("model.output_attn_res")
    for layer in range(cfg["num_hidden_layers"]):
        own = f"model.layers.{layer}."
        norm(f"{own}input_layernorm", d)
        norm(f"{own}post_attention_layernorm", d)
        states(f"{own}self_attention_res")
        states(f"{own}mlp_res")
        if layer + 1 in cfg["linear_attn_config"]["kda_layers"]:
            _draw_recurrence(cfg, f"{own}self_attn.", matrix, norm, made, rng)
        else:
            _draw_attention(cfg, f"{own}self_attn.", matrix, norm)
        if layer < cfg["first_k_dense_replace"]:
            mlp(f"{own}mlp", cfg["intermediate_size"])
            continue
        own, latent = f"{own}block_sparse_moe.", cfg["routed_expert_hidden_size"]
        width = cfg["moe_intermediate_size"]
        matrix(f"{own}gate", cfg["num_experts"], d)
        made[f"{own}gate.e_score_correction_bias"] = rng.normal(0, 0.1, cfg["num_experts"])
        matrix(f"{own}routed_expert_down_proj", latent, d, 0.3)
        norm(f"{own}routed_expert_norm", latent)
        matrix(f"{own}routed_expert_up_proj", d, latent)
        mlp(f"{own}shared_experts", width * cfg["num_shared_experts"])
        for number in range(cfg["num_experts"]):
            for part in ("w1", "w3"):
                matrix(f"{own}experts.{number}.{part}", width, latent, 0.3)
            matrix(f"{own}experts.{number}.w2", latent, width, 0.3)
    return made


def _draw_recurrence(cfg: Any, own: str, matrix: Any, norm: Any, made: Tensors, rng: Any) -> None:
    part = cfg["linear_attn_config"]
    d, n, h = cfg["hidden_size"], part["num_heads"], part["head_dim"]
    for name in "qkvg":
        matrix(f"{own}{name}_proj", n * h, d)
    for name in "qkv":
        shape = (n * h, 1, part["short_conv_kernel_size"])
        made[f"{own}{name}_conv1d.weight"] = rng.normal(0, 0.7, shape)
    matrix(f"{own}f_a_proj", h, d)
    matrix(f"{own}f_b_proj", n * h, h)
    matrix(f"{own}b_proj", n, d)
    made[f"{own}A_log"] = rng.uniform(-1, 0.5, n)
    made[f"{own}dt_bias"] = rng.normal(-1, 0.5, n * h)
    norm(f"{own}o_norm", h)
    matrix(f"{own}o_proj", d, n * h)


def _draw_attention(cfg: Any, own: str, matrix: Any, norm: Any) -> None:
    d, n, rank, latent = (
        cfg[key] for key in ("hidden_size", "num_attention_heads", "q_lora_rank", "kv_lora_rank")
    )
    nope, rope, v = (cfg[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    # So small latents that what is added under the roots of their norms is seen.
    matrix(f"{own}q_a_proj", rank, d, 0.01)
    norm(f"{own}q_a_layernorm", rank)
    matrix(f"{own}q_b_proj", n * (nope + rope), rank, 0.3)
    matrix(f"{own}kv_a_proj_with_mqa", latent + rope, d, 0.02)
    norm(f"{own}kv_a_layernorm", latent)
    matrix(f"{own}kv_b_proj", n * (nope + v), latent, 0.3)
    matrix(f"{own}g_proj", n * v, d, 0.3)
    matrix(f"{own}o_proj", d, n * v)


def packed_mxfp4(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Round rows to blocks of 32 codes; return two codes a byte, scales, and what they stand for.

    Source: `pack_fp4_to_uint8` of vllm-project/compressed-tensors, the earlier code in the lower
    bits; scales of OCP MX, powers of two as bytes from -127 on.
    """
    blocks = values.reshape(len(values), -1, 32)
    exponents = np.floor(np.log2(np.abs(blocks).max(-1))) - 2
    scaled = blocks / 2.0 ** exponents[..., None]
    nearest = np.abs(np.abs(scaled)[..., None] - MAGNITUDES).argmin(-1)
    wide = np.sign(scaled) * MAGNITUDES[nearest] * 2.0 ** exponents[..., None]
    codes = (nearest + 8 * (scaled < 0)).astype(np.uint8).reshape(values.shape)
    packed = codes[:, 0::2] | (codes[:, 1::2] << 4)
    return packed, (exponents + 127).astype(np.uint8), wide.reshape(values.shape)


# --- the model, token by token -----------------------------------------------------------------


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def rms(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + eps) * weight


class Model:
    """One sequence; `step` takes a token and keeps what later ones need."""

    def __init__(self, cfg: dict[str, Any], tensors: Tensors) -> None:
        self.cfg, self.eps = cfg, cfg["rms_norm_eps"]
        self.tensors = {name: np.asarray(x, np.float64) for name, x in tensors.items()}
        self.kept: dict[int, Any] = {}

    def weight(self, name: str) -> np.ndarray:
        return self.tensors[f"{name}.weight"]

    def step(self, token: int) -> np.ndarray:
        """Return the logits behind a token."""
        # Completed blocks, of which the embedding is the first, and the sum of the running one.
        blocks: list[np.ndarray] = []
        prefix = self.weight("model.embed_tokens")[token]
        for layer in range(self.cfg["num_hidden_layers"]):
            own = f"model.layers.{layer}."
            given = self.mixed(blocks, prefix, f"{own}self_attention_res")
            if layer % self.cfg["attn_res_block_size"] == 0:
                blocks.append(prefix)
                prefix = np.zeros_like(prefix)
            given = rms(given, self.weight(f"{own}input_layernorm"), self.eps)
            is_recurrent = layer + 1 in self.cfg["linear_attn_config"]["kda_layers"]
            attend = self.recurrence if is_recurrent else self.attention
            prefix = prefix + attend(given, layer, f"{own}self_attn.")
            given = self.mixed(blocks, prefix, f"{own}mlp_res")
            given = rms(given, self.weight(f"{own}post_attention_layernorm"), self.eps)
            if layer < self.cfg["first_k_dense_replace"]:
                prefix = prefix + self.mlp(
                    given, f"{own}mlp", ("gate_proj", "up_proj", "down_proj")
                )
            else:
                prefix = prefix + self.mixture(given, f"{own}block_sparse_moe.")
        last = self.mixed(blocks, prefix, "model.output_attn_res")
        return self.weight("lm_head") @ rms(last, self.weight("model.norm"), self.eps)

    def mixed(self, blocks: list[np.ndarray], prefix: np.ndarray, name: str) -> np.ndarray:
        """Weigh blocks and the running sum by a softmax over depth."""
        sources = np.stack([*blocks, prefix])
        keys = rms(sources, self.weight(f"{name}_norm"), self.eps)
        scores = keys @ self.weight(f"{name}_proj")[0]
        weights = np.exp(scores - scores.max())
        return weights @ sources / weights.sum()

    def mlp(self, x: np.ndarray, name: str, parts: tuple[str, str, str]) -> np.ndarray:
        gate, up = (self.weight(f"{name}.{part}") @ x for part in parts[:2])
        limit, up_limit = (self.cfg[f"activation_situ_{key}"] for key in ("beta", "linear_beta"))
        bent = limit * np.tanh(gate / limit) * sigmoid(gate)
        return self.weight(f"{name}.{parts[2]}") @ (bent * up_limit * np.tanh(up / up_limit))

    def mixture(self, x: np.ndarray, own: str) -> np.ndarray:
        scores = sigmoid(self.weight(f"{own}gate") @ x)
        ranked = np.argsort(-(scores + self.tensors[f"{own}gate.e_score_correction_bias"]))
        chosen = ranked[: self.cfg["num_experts_per_token"]]
        latent = self.weight(f"{own}routed_expert_down_proj") @ x
        total = np.zeros_like(latent)
        for number in chosen:
            expert = self.mlp(latent, f"{own}experts.{number}", ("w1", "w3", "w2"))
            total = total + scores[number] / scores[chosen].sum() * expert
        total = rms(total, self.weight(f"{own}routed_expert_norm"), self.eps)
        shared = self.mlp(x, f"{own}shared_experts", ("gate_proj", "up_proj", "down_proj"))
        return self.weight(f"{own}routed_expert_up_proj") @ total + shared

    def attention(self, x: np.ndarray, layer: int, own: str) -> np.ndarray:
        """Latent attention in its naive form, without rotation; every value has a gate."""
        n, nope, v = (
            self.cfg[key] for key in ("num_attention_heads", "qk_nope_head_dim", "v_head_dim")
        )
        low = self.weight(f"{own}q_a_proj") @ x
        low = rms(low, self.weight(f"{own}q_a_layernorm"), self.eps)
        query = (self.weight(f"{own}q_b_proj") @ low).reshape(n, -1)
        both = self.weight(f"{own}kv_a_proj_with_mqa") @ x
        latent, shared = np.split(both, [self.cfg["kv_lora_rank"]])
        latent = rms(latent, self.weight(f"{own}kv_a_layernorm"), self.eps)
        of_heads = (self.weight(f"{own}kv_b_proj") @ latent).reshape(n, nope + v)
        keys, values = self.kept.setdefault(layer, ([], []))
        keys.append(np.concatenate((of_heads[:, :nope], np.tile(shared, (n, 1))), axis=1))
        values.append(of_heads[:, nope:])
        scores = np.einsum("nc,snc->ns", query, np.stack(keys)) / np.sqrt(query.shape[1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        heads = np.einsum("ns,snv->nv", weights, np.stack(values)).reshape(-1)
        return self.weight(f"{own}o_proj") @ (heads * sigmoid(self.weight(f"{own}g_proj") @ x))

    def recurrence(self, x: np.ndarray, layer: int, own: str) -> np.ndarray:
        """Kimi Delta Attention with bounded decays; gates come by one matrix."""
        part = self.cfg["linear_attn_config"]
        n, h, n_taps = part["num_heads"], part["head_dim"], part["short_conv_kernel_size"]
        empty = ({name: np.zeros((n_taps, n * h)) for name in "qkv"}, np.zeros((n, h, h)))
        inputs, state = self.kept.get(layer, empty)
        convolved = {}
        for name in "qkv":
            window = np.concatenate((inputs[name][1:], [self.weight(f"{own}{name}_proj") @ x]))
            inputs[name] = window
            summed = (window.T * self.weight(f"{own}{name}_conv1d")[:, 0]).sum(-1)
            convolved[name] = (summed * sigmoid(summed)).reshape(n, h)
        query, key, value = (convolved[name] for name in "qkv")
        query, key = (y / np.sqrt((y**2).sum(-1, keepdims=True) + 1e-6) for y in (query, key))
        fade = self.weight(f"{own}f_b_proj") @ (self.weight(f"{own}f_a_proj") @ x)
        fade = (fade + self.tensors[f"{own}dt_bias"]).reshape(n, h)
        bound = part["gate_lower_bound"]
        decay = np.exp(bound * sigmoid(np.exp(self.tensors[f"{own}A_log"])[:, None] * fade))
        rate = sigmoid(self.weight(f"{own}b_proj") @ x)
        state = state * decay[:, :, None]
        error = value - np.einsum("nkv,nk->nv", state, key)
        state = state + np.einsum("nk,nv->nkv", key, error * rate[:, None])
        self.kept[layer] = inputs, state
        read = np.einsum("nkv,nk->nv", state, query) / np.sqrt(h)
        read = rms(read, self.weight(f"{own}o_norm"), self.eps).reshape(-1)
        gate = sigmoid(self.weight(f"{own}g_proj") @ x)
        return self.weight(f"{own}o_proj") @ (read * gate)


# --- one checkpoint ----------------------------------------------------------------------------


def make(name: str, folder: Path, seed: int = 0) -> None:
    """Write one checkpoint of `CASES` and the logits of its prompt into a folder of its name."""
    from safetensors.numpy import save_file

    cfg, is_narrow = CASES[name]
    rng = np.random.default_rng(seed or FIRST_SEED)
    stored: Tensors = {}
    values: Tensors = {}
    for tensor, drawn in random_tensors(cfg, rng).items():
        if is_narrow and ".experts." in tensor:
            packed, scales, values[tensor] = packed_mxfp4(drawn)
            stem = PREFIX + tensor
            stored |= {f"{stem}_packed": packed, f"{stem}_scale": scales}
        else:
            plain = drawn.astype(ml_dtypes.bfloat16 if is_narrow else np.float32)
            stored[PREFIX + tensor] = values[tensor] = plain
    tokens = rng.integers(3, cfg["vocab_size"], PROMPT_SHAPE)
    models = [Model(cfg, values) for _ in tokens]
    logits = np.array(
        [[model.step(token) for token in row] for model, row in zip(models, tokens, strict=True)]
    )
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    whole = {
        "architectures": ["KimiK3ForConditionalGeneration"],
        "model_type": "kimi_k3",
        "text_config": cfg,
        "vision_config": {"vt_hidden_size": 8},
    }
    (target / "config.json").write_text(json.dumps(whole, indent=1) + "\n")
    save_file(stored, target / "model.safetensors")
    np.savez_compressed(target / "logits.npz", tokens=tokens, logits=logits.astype(np.float32))
    n_bytes = sum(file.stat().st_size for file in target.iterdir())
    print(f"{name}: {n_bytes} bytes, |logit| max {abs(logits).max():.2f}, std {logits.std():.2f}")
