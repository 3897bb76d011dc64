"""What a Hugging Face model type can fix without saying so in its `config.json`, as fields.

What each type does fix is in the table of `hf_families`. Holds no size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .tensor_names import TensorNames

#: What a router makes of its logits: scores of all experts, of which the largest are taken, or the
#: softmax over the chosen logits only, or the sigmoid of each.
Scoring = Literal["sigmoid", "softmax", "softmax_after_top_k", "sigmoid_after_top_k"]
#: What the gates of MLPs go through: the logistic function times its argument, or GELU in its tanh
#: form; or there are no gates, and the up projection itself is squared where it is above 0; or both
#: are softly limited, as `config_parts.Situ` says.
Activation = Literal["silu", "gelu_tanh", "relu2", "situ"]


def up_matrices(activation: Activation) -> int:
    """Count the matrices of an MLP before its activation: gate and up, or the latter alone."""
    return 1 if activation == "relu2" else 2


@dataclass(frozen=True, kw_only=True)
class ExpertRules:
    """The rules of a mixture of experts that the type fixes."""

    scoring: Scoring
    #: Key of the width of an expert.
    width: Literal["moe_intermediate_size", "intermediate_size"] = "moe_intermediate_size"
    #: Weights are divided by their sum, whatever the file says; else the file must say.
    is_normalised: bool = False
    #: Chosen by scores plus a bias ("noaux_tc"), in groups, beside shared experts, scaled, after
    #: some dense layers: the file must say each of the numbers.
    is_deepseek_like: bool = False
    is_mimo_v2: bool = False  #: DeepSeek's, without shared ones; the file marks dense layers
    #: Step: chosen by scores plus a bias, scaled, beside a shared one of a width of its own; the
    #: file lists the layers that have them.
    is_step: bool = False
    #: MiniMax-M3: scaled, beside a shared one of a width of its own; the file marks dense layers.
    is_minimax_m3: bool = False
    has_biases: bool = False  #: router and experts have biases
    is_corrected: bool = False  #: chosen by scores plus a bias, in one group
    is_clamped: bool = False  #: the SwiGLU of experts is clamped as in gpt-oss
    weighs_rows: bool = False  #: weights multiply what experts are given
    #: Gemma 4, if `enable_moe_block`: norms of their own, beside a dense MLP, which is read as a
    #: shared expert.
    has_own_norms: bool = False
    #: Beside them is a shared expert of a width of its own, gated by each row.
    has_gated_shared: bool = False
    #: As `is_deepseek_like`, but the file lists the layers that have experts, experts may work in a
    #: narrower space, and the shared one has a width of its own.
    is_nemotron_like: bool = False
    #: Experts may work in a narrower space, whose sums may be normalised; a format of the file does
    #: not narrow the ways into it and back.
    is_kimi_k3: bool = False


@dataclass(frozen=True, kw_only=True)
class FamilyRules:
    """The rules of a model type."""

    family: str  #: types of one family name their tensors alike
    architecture: str  #: the class that the rules are read off; a file must not name another
    other_architectures: tuple[str, ...] = ()  #: what files call it beside
    is_latent: bool = False
    has_index: bool = False  #: latent attention is sparse: to what an index finds
    has_followers: bool = False  #: the file may say which layers have no index of their own
    is_interleaved: bool = False  #: rotation turns neighbours, not halves
    is_partial: bool = False  #: the file says which part of a head is rotated
    is_scaled: bool = True  #: the file may scale the rotation for longer contexts
    #: The file shares the rotation out to time, height and width: one position each, in text.
    has_picture_axes: bool = False
    #: Which projections have biases if `attention_bias` is true: none may, all but the output's, or
    #: all four.
    biases: Literal["none", "qkv", "all"] = "none"
    are_biases_fixed: bool = False  #: they have them always; the key may only repeat it
    #: Whether queries and keys of a head are normalised; "file": as `use_qk_norm` says; "joint":
    #: those of all heads together.
    qk_norm: Literal["no", "yes", "file", "joint"] = "no"
    has_sinks: bool = False
    #: Which layers see `sliding_window` keys only: none may, all do, or those in `layer_types`,
    #: without which it is those from `max_window_layers` on ("late"), every other ("even"), or all
    #: but every sixth, or as `sliding_window_pattern` says ("most").
    windows: Literal["none", "all", "late", "even", "most"] = "none"
    #: Where the file has a window, layers that do not slide are not rotated.
    turns_sliding_alone: bool = False
    has_unrotated_layers: bool = False  #: `no_rope_layers`, or the interval, says which
    #: Layers are Gated DeltaNet but for those that `layer_types`, or the interval, says; grouped
    #: attention has a gate for its results.
    has_recurrent_layers: bool = False
    #: A layer is one block, of the kind that the file lists for it; recurrent ones are Mamba2, and
    #: nothing is rotated.
    has_single_blocks: bool = False
    #: Recurrent layers are Kimi Delta Attention, which the file lists, and nothing is rotated.
    is_kimi_linear: bool = False
    #: Kimi K3: likewise; gates come by one matrix, decays have a bound, every value of latent
    #: attention has a gate, and blocks are given means of what blocks of layers added.
    is_kimi_k3: bool = False
    #: Ling 3: likewise, by matrices of full rank and with a bound of its decays, but for the last
    #: layer of each group; latent attention is rotated, and gated by head.
    is_bailing_hybrid: bool = False
    has_multipliers: bool = False  #: of embeddings, results of blocks, logits and attention
    has_window_switch: bool = False  #: windows are used only if `use_sliding_window` is true
    activation: Activation = "silu"
    #: Gemma: embeddings are multiplied by the root of their width, results of blocks normalised.
    is_gemma: bool = False
    norms_inputs: bool = True  #: blocks normalise what they are given
    norms_results: bool = False  #: and, as Gemma's, what they add
    #: The scores' multiplier is one over the root of `query_pre_attn_scalar`.
    has_query_scalar: bool = False
    #: Whether `final_logit_softcapping` and `attn_logit_softcapping` may cap logits and scores.
    caps: frozenset[Literal["logits", "scores"]] = frozenset()
    has_local_rotation: bool = False  #: sliding layers have a rotation of their own
    #: Gemma 4: layers that do not slide have heads of their own, whose values may be keys; values
    #: are normalised, scores not multiplied, and a stored number scales every layer.
    has_global_heads: bool = False
    #: Llama 4: rotated layers see chunks of `attention_chunk_size` positions, and `use_qk_norm`
    #: says whether their queries and keys are normalised behind the rotation; in the others queries
    #: grow with their position. Each so-many-th layer has experts, beside one for every row.
    is_llama4: bool = False
    #: MiMo-V2: sliding layers have twice the heads of keys, sinks and a rotation of their own;
    #: values are narrower than keys, and scaled.
    is_mimo_v2: bool = False
    #: Step 3.7: sliding layers have query heads and a rotation of their own, and every head has a
    #: gate; lists go on with the kinds of layers that predict.
    is_step: bool = False
    #: MiniMax-M3: some layers attend to blocks of positions that an index finds; dense MLPs are
    #: clamped as experts are.
    is_minimax_m3: bool = False
    experts: ExpertRules | None = None
    are_all_layers_mixtures: bool = False  #: there is no width of dense ones
    #: What the class takes for a key that the file leaves out. No width, depth or number of
    #: experts is among them: without these a file describes no model.
    defaults: Mapping[str, Any] = field(default_factory=dict)
    #: How the class scales the rotation where a file has neither `rope_parameters` nor
    #: `rope_scaling`.
    scaling_by_default: Mapping[str, Any] = field(default_factory=dict)
    names: TensorNames = field(default_factory=TensorNames)
