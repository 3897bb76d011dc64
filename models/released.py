"""Bytes of a released checkpoint, by the format its file declares.

Counts the parameters of `models.params`, so prediction layers and vision towers are left out, as is
what a file holds beside tensors.
"""

from .config import ModelConfig
from .param_spec import ParamSpec
from .params import model_params
from .policy import RELEASED, policy_named

#: Bits of a value of formats without scales.
_PLAIN_BITS = {"bf16": 16.0, "fp16": 16.0, "fp32": 32.0}
#: Bits of what a narrow format leaves as it was.
_SPARED_BITS = 16.0


def released_bytes(model_cfg: ModelConfig) -> float:
    """Return the bytes of the weights as their publisher ships them.

    Args:
        model_cfg: the model; `released_format` and `released_roles` say what is narrow.

    Returns:
        The bytes, scales included.

    Raises:
        ConfigError: if the format is not one whose bits are known.

    Fidelity:
        Approximate where matrices do not fill whole blocks: a share of a block's scale is counted.
        Biases that correct a choice of experts are counted at 16 bits; files may hold them in 32.
        Scales of whole matrices and columns are not counted.

    Source:
        Formats of DeepSeek-V3 and Kimi K2 (e4m3, an fp32 scale per 128 x 128 block), Kimi K2.5
        (int4, a 16-bit scale per 32), gpt-oss (MXFP4) and NVIDIA ModelOpt (NVFP4, FP8); what is
        left out has 16 bits.
    """
    narrow = _narrow_bits(model_cfg)

    def bits(spec: ParamSpec) -> float:
        if model_cfg.released_format in _PLAIN_BITS:
            return _PLAIN_BITS[model_cfg.released_format]
        return narrow.get(spec.role, _SPARED_BITS) if spec.rows else _SPARED_BITS

    return sum(count * spec.n_values * bits(spec) / 8 for count, spec in model_params(model_cfg))


def _narrow_bits(model_cfg: ModelConfig) -> dict[str, float]:
    """Bits of a value, scales included, by role."""
    if model_cfg.released_format in _PLAIN_BITS:
        return {}
    policy = policy_named(RELEASED, model_cfg)
    return {role: scheme.bits_per_value for role, scheme in policy.weights.items()}
