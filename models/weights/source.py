"""A weight source over tensors under their Hugging Face names.

It hands out arrays in the shapes of `models.params`, one block or one routed expert at a time, so
that a trillion-parameter model never has to exist at once: float32, or the codes and scales of a
quantised file. Rounding to another storage format is not done here.
"""

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from operator import itemgetter
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Int

from lpu_jax.errors import WeightsError
from lpu_jax.quantities import format_given

from ..config import GqaConfig, MlaConfig, ModelConfig
from ..depth import NORM, QUERY, with_states
from ..hf_families import TENSOR_NAMES
from ..param_spec import ParamSpec
from ..params import block_params, expert_params
from .forms import StoredTensors, owner
from .index_tensors import block_index_weights, index_weights
from .names import Shape, file_tensors, is_left_out
from .protocol import WeightSource as WeightSource
from .protocol import check_block, check_expert
from .recurrent import recurrent_arrays
from .stored import Matrix, Weight, joined, laid_across, laid_out, moved, one_of_batch, packed
from .tensor import Tensor, quoted

Arrays = dict[str, np.ndarray]
#: float32, or codes and scales as the files hold them (`models.weights.stored.dequantised`).
Weights = dict[str, Weight]


#: Rows of a table that are compared at once.
_WORDS_AT_ONCE = 4096


class HfTensors:
    """A weight source over tensors under their Hugging Face names.

    The mapping may be lazy: a tensor is looked up when its block is asked for, never kept.
    """

    def __init__(
        self,
        model_cfg: ModelConfig,
        tensors: Mapping[str, Tensor | np.ndarray],
        where: str | None = None,
        *,
        may_be_cut: bool = True,
        are_norms_whole: bool = False,
    ) -> None:
        self.config = model_cfg
        self._tensors = tensors
        self._where = model_cfg.name if where is None else where
        self._names = TENSOR_NAMES[model_cfg.family]
        self._shapes = {**file_tensors(model_cfg), **self._fadings(tensors)}
        self._stored = StoredTensors(tensors, self._where)
        self._are_norms_whole = are_norms_whole
        self._refuse_unknown_tensors(may_be_cut)

    def _fadings(self, tensors: Mapping[str, Tensor | np.ndarray]) -> dict[str, Shape]:
        """Return the shapes in which a file holds the fadings of heads with decays of channels.

        Older files have two more dimensions in front and one behind. Source: the loader of these
        parameters in vLLM 0.33, `models/kimi_k3`, which takes both.
        """
        net = self.config.recurrent
        if net is None or net.channel_rank is None:
            return {}
        allowed = ((net.n_value_heads,), (1, 1, net.n_value_heads, 1))
        layers = map(self._names.layer.format, self.config.recurrent_layers)
        names = [prefix + self._names.recurrent_fading for prefix in layers]
        found = {name: tensors[name].shape for name in names if name in tensors}
        return {name: shape for name, shape in found.items() if shape in allowed}

    def with_config(self, model_cfg: ModelConfig) -> "HfTensors":
        """Return a source of the same tensors for another reading of them, such as fewer layers."""
        return HfTensors(
            model_cfg, self._tensors, self._where, are_norms_whole=self._are_norms_whole
        )

    def check_all(self) -> None:
        """Check shapes and types of all tensors of the model, reading none.

        Raises:
            WeightsError: if one is missing, has another shape, or is of another type.
        """
        missing = [name for name in self._shapes if not self._stored.has(name)]
        if missing:
            raise WeightsError(
                f"{self._where}: tensor {quoted(missing[0])} is missing ({len(missing)} missing in "
                "all)."
            )
        for name, shape in self._shapes.items():
            self._stored.check(name, shape)

    def check_tied_head(self) -> None:
        """Check that what lies beside a tied table as a head is its copy, reading both in runs.

        Raises:
            WeightsError: if it is another matrix, which the model would ignore.
        """
        table, head = (f"{own}.weight" for own in (self._names.embedding, self._names.head))
        if not self.config.tie_embeddings or head not in self._tensors:
            return
        shape = self._shapes[table]
        for first in range(0, shape[0], _WORDS_AT_ONCE):
            words = np.arange(first, min(first + _WORDS_AT_ONCE, shape[0]))
            mine, copy = (self._stored.rows(name, shape, words) for name in (table, head))
            if not np.array_equal(mine, copy):
                raise WeightsError(
                    f"{self._where}: tensor {quoted(head)} differs from {quoted(table)}, with "
                    "which config.json ties it; with tie_word_embeddings false it is used."
                )

    def block(self, kind: str, layer: int = 0) -> Weights:
        """Return one block's parameters; see `WeightSource.block`.

        Raises:
            WeightsError: if a tensor is missing, has another shape or type, or holds NaN.
        """
        check_block(self.config, kind, layer)
        arrays = self._block(kind, self._names.layer.format(layer))
        return with_states(self.config, kind, layer, arrays)

    def _block(self, kind: str, prefix: str) -> Weights:
        """Read the parameters of a block of the layer whose tensors' names begin so."""
        match kind:
            case "embed":
                return {"table": self._vector(f"{self._names.embedding}.weight")}
            case "attention" | "sliding" | "unrotated" | "indexed" | "following" | "blocked":
                return self._attention(kind, prefix)
            case "recurrent":
                return self._recurrent(prefix)
            case "dense":
                specs = block_params(self.config, "dense")
                arrays = self._mlp(prefix + self._names.mlp, self._names.gate_up_down, specs)
                norm = self._of_input(prefix + self._names.mlp_norm)
                norm |= self._of_depth(prefix + self._names.mlp_depth)
                return {**norm, **arrays, **self._of_layer(prefix)}
            case "moe":
                norm = self._of_input(prefix + self._names.mlp_norm)
                norm |= self._of_depth(prefix + self._names.mlp_depth)
                return {**norm, **self._mixture(prefix), **self._of_layer(prefix)}
            case _:
                return {**self._final(), "out": self._head()}

    def of_tokens(self, kind: str, tokens: Int[np.ndarray, " n"]) -> Weights:
        """Return "embed" with the table's rows, or "head" with the columns, of these tokens alone.

        Raises:
            WeightsError: if the model has no such tokens, or as in `block`.
        """
        if not tokens.size or tokens.min() < 0 or tokens.max() >= self.config.vocab_size:
            raise WeightsError(
                f"{self.config.name}: tokens must be from 0 to {self.config.vocab_size - 1}, got "
                f"{format_given(tokens.tolist())}."
            )
        is_table = kind == "embed" or self.config.tie_embeddings
        name = f"{self._names.embedding if is_table else self._names.head}.weight"
        rows = self._stored.rows(name, self._shapes[name], tokens)
        if kind == "embed":
            return {"table": rows}
        return {**self._final(), "out": np.ascontiguousarray(rows.T)}

    def expert(self, layer: int, expert_id: int) -> Weights:
        """Return one routed expert; see `WeightSource.expert`.

        Raises:
            WeightsError: if the model has no such expert, or as in `block`.
        """
        check_expert(self.config, layer, expert_id)
        assert self.config.moe is not None  # check_expert refused such models
        specs = {
            name: one_of_batch(spec)
            for name, spec in expert_params(self.config.d_model, self.config.moe).items()
        }
        prefix = self._names.layer.format(layer) + self._names.expert
        if self._names.has_fused_experts:
            return self._fused_expert(prefix, expert_id, specs)
        return self._mlp(prefix.format(expert_id), self._names.expert_gate_up_down, specs)

    def _vector(self, name: str) -> np.ndarray:
        """Read plain numbers in float32: vectors, and the table that is looked up."""
        return self._stored.vector(name, self._shapes[name])

    def _matrix(self, name: str) -> Matrix:
        return self._stored.matrix(f"{name}.weight", self._shapes[f"{name}.weight"])

    def _norm(self, name: str) -> np.ndarray:
        """Read the weights of a norm, as what multiplies."""
        weight = self._vector(f"{name}.weight")
        is_centred = self._names.are_norms_centred and not self._are_norms_whole
        return weight + np.float32(1) if is_centred else weight

    def _of_input(self, name: str) -> Weights:
        """Read the norm of what a block is given, where the model has one."""
        return {"norm": self._norm(name)} if self.config.norms_inputs else {}

    def _of_depth(self, prefix: str) -> Weights:
        """Read what weighs the states that a block is given, where a model has several."""
        if self.config.residual_block is None:
            return {}
        query = self._vector(f"{prefix}proj.weight").reshape(-1)
        return {NORM: self._norm(f"{prefix}norm"), QUERY: query}

    def _final(self) -> Weights:
        """Read what is before the head."""
        norm = self._norm(self._names.final_norm)
        return {"norm": norm, **self._of_depth(self._names.final_depth)}

    def _head(self) -> Weight:
        spec = block_params(self.config, "head")["out"]
        tied = self.config.tie_embeddings
        name = self._names.embedding if tied else self._names.head
        return laid_out(self._matrix(name), spec, "v d -> d v")

    def _of_result(self, name: str) -> Weights:
        """Read the norm of what a block adds, where the model has one."""
        return {"result_norm": self._norm(name)} if self.config.norms_results else {}

    def _of_layer(self, prefix: str) -> Weights:
        """Read that norm of an MLP, and what scales the layer, where the model has them."""
        result = self._of_result(prefix + self._names.mlp_result_norm)
        if self.config.scales_layers:
            result["layer_scale"] = self._vector(prefix + self._names.layer_scale)
        return result

    def _attention(self, kind: str, prefix: str) -> Weights:
        attention = self.config.attention_of(kind)
        norm = self._of_input(prefix + self._names.attention_norm)
        norm |= self._of_depth(prefix + self._names.attention_depth)
        if isinstance(attention, MlaConfig):
            arrays = {**norm, **self._latent_attention(prefix, attention)}
            readers = self._matrix, self._vector
            return arrays | index_weights(self.config, kind, prefix, *readers)
        specs = block_params(self.config, kind)
        arrays = self._grouped_attention(prefix, attention, specs)
        if kind == "blocked":
            arrays |= block_index_weights(self.config, prefix, self._matrix, self._norm)
        result = self._of_result(prefix + self._names.attention_result_norm)
        return {**norm, **arrays, **result}

    def _grouped_attention(
        self, prefix: str, gqa: GqaConfig, specs: Mapping[str, ParamSpec]
    ) -> Weights:
        names = self._names
        heads = {"k": gqa.n_kv_heads, "g": gqa.q_per_kv}
        qkv = [prefix + name for name in names.qkv]
        qkv = qkv[:2] if gqa.are_values_keys else qkv
        q, *kv_parts = self._three(gqa, [self._matrix(name) for name in qkv])
        of_gate: Weights = {}
        if gqa.gated:
            q, gate = self._halves(q, gqa)
            of_gate = {"gate": laid_out(gate, specs["gate"], "(k g h) d -> d k g h", **heads)}
        if gqa.head_gated:
            gate = self._matrix(prefix + names.head_gate)
            of_gate = {"head_gate": laid_out(gate, specs["head_gate"], "(k g) d -> d k g", **heads)}
        arrays: Weights = {
            "q": laid_out(q, specs["q"], "(k g h) d -> d k g h", **heads),
            "kv": self._keys_and_values(kv_parts, gqa, specs["kv"]),
            **of_gate,
        }
        if gqa.qkv_bias:
            q_bias, *kv_bias = self._three(gqa, [self._vector(f"{name}.bias") for name in qkv])
            arrays["q_bias"] = np.reshape(q_bias, specs["q_bias"].shape)
            kv_bias = [bias.reshape(gqa.n_kv_heads, -1) for bias in kv_bias]
            arrays["kv_bias"] = np.concatenate(kv_bias, 1).reshape(specs["kv_bias"].shape)
        if gqa.qk_norm:
            for name, stored in (("q_norm", names.q_norm), ("k_norm", names.k_norm)):
                arrays[name] = self._norm(prefix + stored).reshape(specs[name].shape)
        if gqa.sinks:
            arrays["sinks"] = self._vector(prefix + names.sinks).reshape(specs["sinks"].shape)
        o = self._matrix(prefix + names.output)
        arrays["o"] = laid_out(o, specs["o"], "d (k g v) -> k g v d", **heads)
        if gqa.o_bias:
            arrays["o_bias"] = self._vector(f"{prefix}{names.output}.bias")[None]
        return arrays

    @staticmethod
    def _keys_and_values(parts: list[Matrix], gqa: GqaConfig, spec: ParamSpec) -> Weight:
        """Lay keys and values of each head side by side, or keys that are values too."""
        k = gqa.n_kv_heads
        if gqa.value_dim is None:
            return laid_out(joined(parts, np.stack), spec, "two (k h) d -> d k two h", k=k)
        heads = [
            moved(part, lambda rows: rearrange(rows, "(k e) d -> k e d", k=k)) for part in parts
        ]
        both = joined(heads, partial(np.concatenate, axis=1))
        return laid_out(both, spec, "k e d -> d k e")

    @staticmethod
    def _three(gqa: GqaConfig, arrays: list[Any]) -> list[Any]:
        """Return queries, keys and values, cut apart if they are stored as one, in this order."""
        if len(arrays) > 1:
            return arrays
        n_query, n_kv = gqa.n_heads * gqa.head_dim, gqa.n_kv_heads * gqa.head_dim
        edges = [0, n_query, n_query + n_kv, n_query + n_kv + gqa.n_kv_heads * gqa.value_width]
        return [moved(arrays[0], itemgetter(slice(*ends))) for ends in pairwise(edges)]

    @staticmethod
    def _halves(q: Matrix, gqa: GqaConfig) -> tuple[Matrix, Matrix]:
        """Cut the rows of query heads from those of their gates, which lie beside each."""
        pattern, lengths = "(n two h) d -> two (n h) d", {"two": 2, "h": gqa.head_dim}
        both = [
            moved(q, lambda rows, i=i: rearrange(rows, pattern, **lengths)[i])  # type: ignore[misc]
            for i in (0, 1)
        ]
        return both[0], both[1]

    def _recurrent(self, prefix: str) -> Weights:
        net = self.config.recurrent
        assert net is not None  # check_block refused models without recurrent layers
        arrays = recurrent_arrays(
            net,
            block_params(self.config, "recurrent"),
            self._names,
            lambda name: self._matrix(prefix + name),
            lambda name: self._vector(prefix + name),
        )
        of_depth = self._of_depth(prefix + self._names.attention_depth)
        return {"norm": self._norm(prefix + self._names.attention_norm), **of_depth, **arrays}

    def _latent_attention(self, prefix: str, mla: MlaConfig) -> Weights:
        names, specs = self._names, block_params(self.config, "attention")
        n_heads, nope = mla.n_heads, mla.nope_head_dim
        a, o = self._matrix(prefix + names.kv_a), self._matrix(prefix + names.output)
        of_queries: Weights = {}
        if mla.q_lora_rank is None:
            q_b = self._matrix(prefix + names.q)
        else:
            q_b = self._matrix(prefix + names.q_b)
            a = joined((self._matrix(prefix + names.q_a), a), np.concatenate)
            of_queries["q_norm"] = self._norm(prefix + names.q_a_norm)
        of_gate: Weights = {}
        if mla.gated:
            gate = self._matrix(prefix + names.latent_gate)
            of_gate["gate"] = laid_out(gate, specs["gate"], "n d -> d n")
        if mla.gates_values:
            gate = self._matrix(prefix + names.latent_gate)
            of_gate["gate"] = laid_out(gate, specs["gate"], "(n v) d -> d n v", n=n_heads)
        kv_b = moved(
            self._matrix(prefix + names.kv_b),
            lambda rows: rearrange(rows, "(n e) c -> n e c", n=n_heads),
        )
        if mla.form == "expanded":
            from_latent = {"kv_b": laid_out(kv_b, specs["kv_b"], "n e c -> c n e")}
        else:
            k_b = moved(kv_b, lambda rows: rows[:, :nope])
            v_b = moved(kv_b, lambda rows: rows[:, nope:])
            from_latent = {
                "k_b": laid_across(k_b, specs["k_b"], "n e c -> n e c"),
                "v_b": laid_out(v_b, specs["v_b"], "n v c -> n c v"),
            }
        return {
            "a": laid_out(a, specs["a"], "columns d -> d columns"),
            **of_queries,
            "kv_norm": self._norm(prefix + names.kv_a_norm),
            "q_b": laid_out(q_b, specs["q_b"], "(n e) q -> q n e", n=n_heads),
            **from_latent,
            **of_gate,
            "o": laid_out(o, specs["o"], "d (n v) -> n v d", n=n_heads),
        }

    def _mlp(
        self, prefix: str, gate_up_down: tuple[str, ...], specs: Mapping[str, ParamSpec]
    ) -> Weights:
        *gate_up, down = (self._matrix(prefix + name) for name in gate_up_down)
        both, n_up = joined(tuple(gate_up), np.concatenate), specs["gate_up"].shape[1]
        return {
            "gate_up": laid_out(both, specs["gate_up"], "(n f) d -> d n f", n=n_up),
            "down": laid_out(down, specs["down"], "d f -> f d"),
        }

    def _fused_expert(self, prefix: str, expert_id: int, specs: Mapping[str, ParamSpec]) -> Weights:
        *gate_up, down = (prefix + name for name in self._names.fused_gate_up_down)
        is_turned = self._names.are_fused_turned
        read, shapes = partial(self._stored.fused_matrix, is_turned=is_turned), self._shapes
        columns = "(f two)" if self._names.do_columns_alternate else "(two f)"
        both = joined([read(name, shapes[name], expert_id) for name in gate_up], np.concatenate)
        lowering = read(down, shapes[down], expert_id)
        arrays: Weights = {
            "gate_up": laid_out(both, specs["gate_up"], f"{columns} d -> d two f", two=2),
            "down": laid_out(lowering, specs["down"], "d f -> f d"),
        }
        if "gate_up_bias" in specs:
            both_biases, bias = (
                self._stored.fused_vector(name, shapes[name], expert_id)
                for name in (f"{gate_up[0]}_bias", f"{down}_bias")
            )
            arrays["gate_up_bias"] = packed(both_biases, f"{columns} -> two f", two=2)
            arrays["down_bias"] = bias[None]
        return arrays

    def _mixture(self, prefix: str) -> Weights:
        names, moe = self._names, self.config.moe
        assert moe is not None  # check_block refused models without experts
        specs = block_params(self.config, "moe")
        router = self._matrix(prefix + names.router)
        arrays: Weights = {"router": laid_out(router, specs["router"], "e d -> d e")}
        if moe.router_offset:
            arrays["router_offset"] = self._vector(f"{prefix}{names.router}.bias")
        if moe.correction_bias:
            arrays["router_bias"] = self._vector(prefix + names.correction_bias)
        if "shared_gate" in specs:
            gate = self._matrix(prefix + names.shared_gate)
            arrays["shared_gate"] = laid_out(gate, specs["shared_gate"], "one d -> d one")
        if moe.d_latent is not None:
            for name, stored in (("latent_in", names.latent_in), ("latent_out", names.latent_out)):
                arrays[name] = laid_out(self._matrix(prefix + stored), specs[name], "n k -> k n")
        if moe.latent_norm:
            arrays["latent_norm"] = self._norm(prefix + names.latent_norm)
        if moe.has_own_norms:
            arrays |= self._own_norms(prefix)
        if moe.n_shared:
            of_shared = {name: specs[f"shared_{name}"] for name in ("gate_up", "down")}
            shared = self._mlp(prefix + names.shared, names.gate_up_down, of_shared)
            arrays |= {f"shared_{name}": matrix for name, matrix in shared.items()}
        return arrays

    def _own_norms(self, prefix: str) -> Weights:
        """Read the norms of experts and router, and what scales an expert's weight."""
        names, root = self._names, np.float32(self.config.d_model**0.5)
        scale = self._vector(prefix + names.expert_scale)
        if np.any(scale < 0):  # a weight of 0 or less stands for an expert that is not used
            raise WeightsError(
                f"{self._where}: tensor {quoted(prefix + names.expert_scale)} must not be below 0."
            )
        return {
            "router_norm": self._vector(prefix + names.router_norm) / root,
            "expert_norm": self._norm(prefix + names.expert_norm),
            "shared_result_norm": self._norm(prefix + names.shared_result_norm),
            "expert_result_norm": self._norm(prefix + names.expert_result_norm),
            "expert_scale": scale,
        }

    def _refuse_unknown_tensors(self, may_be_cut: bool) -> None:
        """Refuse tensors this program would skip silently (biases, scales, norms, layers)."""
        for name in self._tensors:
            if owner(name) in self._shapes:
                continue
            if is_left_out(self.config, name, may_be_cut=may_be_cut):
                continue
            where = getattr(self._tensors[name], "where", self._where)
            raise WeightsError(
                f"{where}: tensor {quoted(name)} is not part of a {self.config.family} model of "
                f"{self.config.n_layers} layers and {self.config.n_prediction_layers} that predict "
                "further tokens."
            )


def from_hf_tensors(
    model_cfg: ModelConfig,
    tensors: Mapping[str, Tensor | np.ndarray],
    where: str | None = None,
    *,
    may_be_cut: bool = True,
    are_norms_whole: bool = False,
) -> HfTensors:
    """Return a weight source over tensors under their Hugging Face names.

    Args:
        model_cfg: the model.
        tensors: name to tensor as in a checkpoint, a Linear weight being `[out, in]`; may be lazy.
        where: the file that messages name for arrays in memory; the model's name if not given.
        may_be_cut: the model may have fewer layers than the tensors.
        are_norms_whole: weights of norms are what multiplies, also where a family's checkpoints
            hold their distance from one.

    Raises:
        WeightsError: if a tensor belongs to a feature or a layer that the model does not have.
    """
    return HfTensors(
        model_cfg, tensors, where, may_be_cut=may_be_cut, are_norms_whole=are_norms_whole
    )
