"""Wrong conventions of models whose layers see near keys but for some, and of plain cousins.

A part of `wrong_conventions`, which says what they are.
"""

import numpy as np
from changes import in_array, in_model, in_part
from mistakes import Mistake

from models.reference_mixture import Moe

MISTAKES: dict[str, Mistake] = {
    "llama4: chunks taken for windows": Mistake(
        model="llama4", config=in_part("attention", is_chunked=False)
    ),
    "llama4: chunk one longer": Mistake(model="llama4", config=in_part("attention", window=7)),
    "llama4: every layer sees all keys": Mistake(
        model="llama4", config=in_model(sliding_layers=())
    ),
    "llama4: queries and keys not normalised": Mistake(
        model="llama4", config=in_part("attention", norms_rotated=False)
    ),
    "llama4: queries do not grow": Mistake(
        model="llama4", config=in_part("attention", warming=None)
    ),
    "llama4: halves turned instead of neighbours": Mistake(
        model="llama4", config=in_part("rope", interleaved=False)
    ),
    "llama4: slow pairs not slowed": Mistake(model="llama4", config=in_part("rope", scaling=None)),
    "llama4: the last layer turned too": Mistake(
        model="llama4", config=in_model(unrotated_layers=())
    ),
    "llama4: results weighed instead of rows": Mistake(
        model="llama4", config=in_part("moe", weighs_rows=False)
    ),
    "llama4: softmax of all scores": Mistake(
        model="llama4", config=in_part("moe", scoring="softmax")
    ),
    "llama4: no shared expert": Mistake(model="llama4", config=in_part("moe", n_shared=0)),
    "llama4: gate after up": Mistake(
        model="llama4", arrays=in_array("gate_up", lambda x: x[:, ::-1])
    ),
    "gemma4: router given what experts are": Mistake(
        model="gemma4_moe",
        reference=(((Moe, "of_router"), "self.router_norm(x)", "self.expert_norm(x)"),),
    ),
    "gemma4: experts given what the dense MLP is": Mistake(
        model="gemma4_moe",
        reference=(((Moe, "routed"), "self.expert_norm(x)", "self.norm(x)"),),
    ),
    "gemma4: results added before they are normalised": Mistake(
        model="gemma4_moe",
        reference=(
            (
                (Moe, "finished"),
                "self.expert_result_norm(routed) + shared",
                "self.expert_result_norm(routed + self._shared(self.norm(x)))",
            ),
        ),
    ),
    "gemma4: weights of experts not scaled": Mistake(
        model="gemma4_moe", arrays=in_array("expert_scale", np.ones_like)
    ),
    "gemma4: root of the width kept in the router's norm": Mistake(
        model="gemma4_moe", arrays=in_array("router_norm", lambda x: x * np.float32(32**0.5))
    ),
    "gemma4: silu instead of gelu in experts": Mistake(
        model="gemma4_moe", config=in_part("moe", activation="silu")
    ),
    "mimo: values not scaled": Mistake(
        model="mimo_v2_flash",
        config=lambda cfg: in_part("attention", value_scale=1.0)(
            in_part("sliding_attention", value_scale=1.0)(cfg)
        ),
    ),
    "mimo: sinks dropped": Mistake(
        model="mimo_v2_flash", config=in_part("sliding_attention", sinks=False)
    ),
    "mimo: window without the query's own key": Mistake(
        model="mimo_v2_flash", config=in_part("sliding_attention", window=4)
    ),
    "mimo: sliding layers turned as the others": Mistake(
        model="mimo_v2_flash", config=in_model(sliding_rope=None)
    ),
    "mimo: values before keys": Mistake(
        model="mimo_v2_flash", arrays=in_array("kv", lambda kv: np.roll(kv, 12, axis=-1))
    ),
    "mimo: correction ignored": Mistake(
        model="mimo_v2_flash", config=in_part("moe", correction_bias=False)
    ),
    "step: gates of heads dropped": Mistake(
        model="step3p7", config=in_part("attention", head_gated=False)
    ),
    "step: gates of heads grouped the other way": Mistake(
        model="step3p7",
        arrays=in_array("head_gate", lambda x: x.reshape(x.shape[0], -1, 2).swapaxes(1, 2)),
    ),
    "step: sliding layers turned as the others": Mistake(
        model="step3p7", config=in_model(sliding_rope=None)
    ),
    "step: whole heads turned": Mistake(model="step3p7", config=in_part("rope", dim=16)),
    "step: slow pairs not slowed": Mistake(model="step3p7", config=in_part("rope", scaling=None)),
    "step: window one longer": Mistake(
        model="step3p7", config=in_part("sliding_attention", window=6)
    ),
    "step: correction ignored": Mistake(
        model="step3p7", config=in_part("moe", correction_bias=False)
    ),
    "step: scaling dropped": Mistake(model="step3p7", config=in_part("moe", routed_scaling=1.0)),
    "step: no shared expert": Mistake(model="step3p7", config=in_part("moe", n_shared=0)),
    "step: gate after up": Mistake(
        model="step3p7", arrays=in_array("gate_up", lambda x: x[:, ::-1])
    ),
    "qwen2_moe: softmax weights normalised": Mistake(
        model="qwen2_moe", config=in_part("moe", normalise=True)
    ),
    "qwen2_moe: shared expert not gated": Mistake(
        model="qwen2_moe", config=in_part("moe", gated_shared=False)
    ),
    "mimo: biases dropped": Mistake(model="mimo", config=in_part("attention", qkv_bias=False)),
    "glm4: halves turned instead of neighbours": Mistake(
        model="glm4", config=in_part("rope", interleaved=False)
    ),
    "glm4: results not normalised": Mistake(model="glm4", config=in_model(norms_results=False)),
    "glm4: norms behind and before an MLP swapped": Mistake(
        model="glm4",
        arrays=lambda arrays: (
            arrays | {"norm": arrays["result_norm"], "result_norm": arrays["norm"]}
            if "gate_up" in arrays
            else arrays
        ),
    ),
    "olmo2: results not normalised": Mistake(model="olmo2", config=in_model(norms_results=False)),
    "olmo2: norms of heads dropped": Mistake(
        model="olmo2", config=in_part("attention", qk_norm=False, is_qk_norm_joint=False)
    ),
    "olmo3: sliding layers scaled as the others": Mistake(
        model="olmo3", config=in_model(sliding_rope=None)
    ),
    "olmo3: the other layer slides": Mistake(model="olmo3", config=in_model(sliding_layers=(1,))),
    "exaone4: every layer turned": Mistake(model="exaone4", config=in_model(unrotated_layers=())),
    "exaone4: results not normalised": Mistake(
        model="exaone4", config=in_model(norms_results=False)
    ),
    "exaone4: norms of heads dropped": Mistake(
        model="exaone4", config=in_part("attention", qk_norm=False)
    ),
}
