"""What the checkpoints of a family of models call their tensors; `hf_families` says which do."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TensorNames:
    """What the checkpoints of a family call their tensors.

    Those of a layer follow `layer`, in which `{}` is its number. Matrices are named without the
    `.weight` and `.bias` that follow. A matrix is `[out, in]`.
    """

    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    layer: str = "model.layers.{}."

    attention_norm: str = "input_layernorm"
    #: Query, key and value matrices; a family that stores them as one names only that.
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"
    sinks: str = "self_attn.sinks"
    head_gate: str = "self_attn.g_proj"  #: of each head one number
    output: str = "self_attn.o_proj"
    #: Weights of norms are stored as their distance from one, but for those of a recurrence.
    are_norms_centred: bool = False

    #: The projections of a recurrent layer: queries, keys, values and gates, by key head, then
    #: rates and decays, by key head; or, in four, queries with keys and values, gates, rates,
    #: decays; or, in eight, queries, keys, values, both of decays, both of gates, rates; or, in
    #: seven, the same with one of gates; in six, with one each of decays and gates. Of Mamba2 one:
    #: gates, values, keys, queries, steps.
    recurrent: tuple[str, ...] = ("linear_attn.in_proj_qkvz", "linear_attn.in_proj_ba")
    #: Taps of queries, keys and values, together or one by one.
    recurrent_taps: tuple[str, ...] = ("linear_attn.conv1d",)
    recurrent_fading: str = "linear_attn.A_log"
    recurrent_fading_bias: str = "linear_attn.dt_bias"
    recurrent_norm: str = "linear_attn.norm"
    recurrent_output: str = "linear_attn.out_proj"
    recurrent_skip: str = "linear_attn.D"  #: by which a head's value is added to its result

    q: str = "self_attn.q_proj"  #: where queries have no latent
    q_a: str = "self_attn.q_a_proj"
    q_a_norm: str = "self_attn.q_a_layernorm"
    q_b: str = "self_attn.q_b_proj"
    kv_a: str = "self_attn.kv_a_proj_with_mqa"
    kv_a_norm: str = "self_attn.kv_a_layernorm"
    kv_b: str = "self_attn.kv_b_proj"
    latent_gate: str = "self_attn.g_proj"  #: of the heads of latent attention, or their values

    #: Queries, key, its norm and the heads' weights of an index.
    index_q: str = "self_attn.indexer.wq_b"
    index_k: str = "self_attn.indexer.wk"
    index_q_norm: str = "self_attn.indexer.q_norm"
    index_k_norm: str = "self_attn.indexer.k_norm"
    index_weights: str = "self_attn.indexer.weights_proj"
    is_index_halved: bool = False  #: its rotation turns halves, though that of heads neighbours

    attention_result_norm: str = "post_attention_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    mlp_result_norm: str = "post_feedforward_layernorm"
    layer_scale: str = "layer_scalar"
    mlp: str = "mlp."
    router: str = "mlp.gate"
    correction_bias: str = "mlp.gate.e_score_correction_bias"
    #: `{}` is the expert's number. Without it all experts of a layer lie in two tensors
    #: `[experts, in, out]`, or in three.
    expert: str = "mlp.experts.{}."
    fused_gate_up_down: tuple[str, ...] = ("gate_up_proj", "down_proj")
    #: In such a tensor, gate and up columns alternate, or the gate's stand before all of the up's.
    do_columns_alternate: bool = True
    are_fused_turned: bool = False  #: such tensors are `[experts, out, in]`
    latent_in: str = "mlp.latent_in"  #: into the space of experts that work in a narrower one
    latent_out: str = "mlp.latent_out"
    latent_norm: str = "mlp.latent_norm"  #: of sums over experts before their way back
    shared: str = "mlp.shared_experts."
    shared_gate: str = "mlp.shared_expert_gate"
    #: Norms of what experts and the router are given, and of what shared experts and experts give;
    #: that of the router is without `.weight`, and less the root of the model's width.
    expert_norm: str = "pre_feedforward_layernorm_2"
    router_norm: str = "router.scale"
    expert_scale: str = "router.per_expert_scale"
    shared_result_norm: str = "post_feedforward_layernorm_1"
    expert_result_norm: str = "post_feedforward_layernorm_2"
    #: Gate, up and down matrices of a dense MLP and of shared experts, and of a routed expert; a
    #: family that stores gate and up as one, or has no gates, names only that before the down
    #: matrix.
    gate_up_down: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    expert_gate_up_down: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    #: Of attention, an MLP and the head: what weighs the states that each is given, a "norm" and a
    #: "proj" of one row.
    attention_depth: str = "self_attention_res_"
    mlp_depth: str = "mlp_res_"
    final_depth: str = "model.output_attn_res_"
    #: What the names of other parts, which are left out, start with: towers for pictures.
    beside: tuple[str, ...] = ()

    @property
    def has_fused_experts(self) -> bool:
        """Whether one tensor holds all experts of a layer."""
        return "{}" not in self.expert
