"""One frozen description of a transformer, from a Hugging Face `config.json` or written by hand.

Holds sizes and rules only, never a tensor. Not described: vision towers, multi-token-prediction
blocks (used for speculation only), sparse attention but to latents or blocks. A file that asks for
one of these is refused, because a reader that skips an unknown key miscounts the model.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, get_args

from lpu_jax.arguments import described
from lpu_jax.errors import ConfigError

from .config_parts import BlockIndexConfig as BlockIndexConfig
from .config_parts import GqaConfig as GqaConfig
from .config_parts import Multipliers as Multipliers
from .config_parts import Situ as Situ
from .config_parts import check_activation, require_positive
from .hf_families import TENSOR_NAMES, Activation
from .index_config import IndexConfig, check_block_index, check_index
from .moe_config import MoeConfig as MoeConfig
from .recurrent_config import RecurrentConfig as RecurrentConfig
from .rope import RopeConfig

#: Latent attention over the cached latent itself, or over keys and values made from it per head.
LatentForm = Literal["absorbed", "expanded"]
#: Kinds of block that a layer may have, as `models.params` calls them.
LayerKind = Literal[
    "attention", "sliding", "unrotated", "recurrent", "indexed", "following", "blocked",
    "dense", "moe",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MlaConfig:
    """Multi-head latent attention: keys and values come from one latent of `kv_lora_rank` values.

    `latent_norm_eps` is 1e-6 whatever the model's norms use: Hugging Face's class fixes it.
    `rope_temperature` is YaRN's m; its square multiplies the softmax scale. `form` says how it is
    computed: the cache holds one latent per token (absorbed), or keys and values of every head,
    which chips can share out (expanded). Without `q_lora_rank` queries come from the hidden state
    by one matrix.
    """

    n_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    nope_head_dim: int
    rope_head_dim: int
    v_head_dim: int
    latent_norm_eps: float = 1e-6
    rope_temperature: float = 1.0
    form: LatentForm = "absorbed"
    index: IndexConfig | None = None  #: tokens attend to what it finds, not to all positions
    gated: bool = False  #: the result of a head is multiplied by a sigmoid of the hidden state
    gates_values: bool = False  #: likewise, each value of it by one of its own

    def __post_init__(self) -> None:
        require_positive(
            self,
            "n_heads",
            *(() if self.q_lora_rank is None else ("q_lora_rank",)),
            "kv_lora_rank",
            "nope_head_dim",
            "rope_head_dim",
            "v_head_dim",
            "latent_norm_eps",
            "rope_temperature",
        )
        if self.form not in get_args(LatentForm):
            raise ConfigError(
                f"MlaConfig.form must be one of {', '.join(get_args(LatentForm))}, got "
                f"{self.form!r}."
            )
        if self.gated and self.gates_values:
            raise ConfigError("heads must have a gate for each value or one for all, not both.")
        if self.index is not None and (self.form == "expanded" or self.q_lora_rank is None):
            raise ConfigError(
                "sparse latent attention must have a latent of queries and be absorbed: its index "
                "needs the former, and chosen positions are read as latents."
            )

    @property
    def query_head_dim(self) -> int:
        """Values of one query head: the part without position, then the rotated part."""
        return self.nope_head_dim + self.rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """What multiplies q·k before the softmax, m² included."""
        return float(self.query_head_dim**-0.5 * self.rope_temperature**2)

    @property
    def cached_values_per_token(self) -> int:
        """Values a layer keeps per token: the latent and the rotated key, or keys and values."""
        if self.form == "expanded":
            return self.n_heads * (self.query_head_dim + self.v_head_dim)
        return self.kv_lora_rank + self.rope_head_dim


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer with RMS norms.

    `released_format` is a hint: the format of the published weight matrices ("bf16", "fp16",
    "fp8" e4m3 in 128x128 blocks, "int4" in groups of 32, "mxfp4", "nvfp4", or the file's own
    words). `released_roles` names the roles of matrices that are narrow, as `models.params` calls
    them; None stands for the usual ones: routed experts for "int4" and "mxfp4", all but embedding,
    head and router for "fp8" and "nvfp4". A model without dense MLPs does not use `d_ff`.
    """

    name: str
    family: str  #: what its tensors are called; see `hf_families`
    n_layers: int
    d_model: int
    d_ff: int
    vocab_size: int
    max_position: int
    norm_eps: float
    tie_embeddings: bool
    attention: GqaConfig | MlaConfig
    rope: RopeConfig
    moe: MoeConfig | None = None
    sliding_layers: tuple[int, ...] = ()  #: layers that see only the attention's window, ascending
    sliding_attention: GqaConfig | None = None  #: theirs, where it is not that of other layers
    sliding_rope: RopeConfig | None = None  #: likewise
    unrotated_layers: tuple[int, ...] = ()  #: layers without rotation ("NoPE"), ascending
    recurrent: RecurrentConfig | None = None
    recurrent_layers: tuple[int, ...] = ()  #: layers that have it in place of attention, ascending
    #: The kind of each layer's only block, where layers are one block each; else a layer is an
    #: attention, or what stands in its place, and an MLP, as the fields above say.
    single_blocks: tuple[LayerKind, ...] = ()
    #: Layers without an index of their own: they attend where the last layer with one does.
    following_layers: tuple[int, ...] = ()
    blocked_layers: tuple[int, ...] = ()  #: layers that attend to blocks of positions, ascending
    multipliers: Multipliers = field(default_factory=Multipliers)
    activation: Activation = "silu"  #: of dense MLPs
    situ: Situ | None = None  #: the numbers of that activation
    #: Layers of a block of attention residuals: what a block is given is then a mean of the sums
    #: that finished blocks of layers left and of the running one, weighed by a softmax over them
    #: (`layers.depth`). None: it is the sum of all that was added.
    residual_block: int | None = None
    clamps_dense: bool = False  #: these are clamped as the experts are
    norms_inputs: bool = True  #: blocks of layers RMS-normalise what they are given
    norms_results: bool = False  #: what a block adds is RMS-normalised before
    scales_layers: bool = False  #: a stored number multiplies the hidden state behind each layer
    logit_cap: float | None = None  #: logits stay within it on either side, as `GqaConfig.cap`
    #: Further layers of the released files, which predict tokens ahead and are left out here.
    n_prediction_layers: int = 0
    released_format: str = "bf16"
    released_roles: tuple[str, ...] | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self._check_types()
        require_positive(
            self, "n_layers", "d_model", "d_ff", "vocab_size", "max_position", "norm_eps"
        )
        if self.family not in TENSOR_NAMES:
            raise ConfigError(
                f"{self.name}: family must be one of {', '.join(TENSOR_NAMES)}, got "
                f"{self.family!r}."
            )
        if self.n_prediction_layers < 0:
            raise ConfigError(
                f"{self.name}: n_prediction_layers must be 0 or more, got "
                f"{self.n_prediction_layers}."
            )
        check_activation(self.name, self.activation, self.situ)
        if self.logit_cap is not None:
            require_positive(self, "logit_cap")
        if self.clamps_dense and (self.moe is None or self.moe.swiglu_limit is None):
            raise ConfigError(f"{self.name}: clamps_dense needs experts that are clamped.")
        self._check_results()
        self._check_rotation()
        self._check_windows()
        self._check_single_blocks()
        self._check_residuals()
        index = getattr(self.attention, "index", None)
        others = self.sliding_layers + self.unrotated_layers + self.recurrent_layers
        check_index(self.name, index, self.following_layers, others, self.rope.dim)
        of_blocks = getattr(self.attention, "block_index", None)
        check_block_index(self.name, of_blocks, self.blocked_layers, others, self.rope.dim)

    def _check_types(self) -> None:
        for name, kind, allowed in (
            ("name", str, "a string"),
            ("released_format", str, "a string"),
            ("tie_embeddings", bool, "True or False"),
            ("attention", GqaConfig | MlaConfig, "a GqaConfig or an MlaConfig"),
            ("rope", RopeConfig, "a RopeConfig"),
            ("moe", MoeConfig | None, "a MoeConfig or None"),
            ("sliding_layers", tuple, "a tuple of layers"),
            ("sliding_attention", GqaConfig | None, "a GqaConfig or None"),
            ("sliding_rope", RopeConfig | None, "a RopeConfig or None"),
            ("unrotated_layers", tuple, "a tuple of layers"),
            ("recurrent", RecurrentConfig | None, "a RecurrentConfig or None"),
            ("recurrent_layers", tuple, "a tuple of layers"),
            ("single_blocks", tuple, "a tuple of kinds"),
            ("following_layers", tuple, "a tuple of layers"),
            ("blocked_layers", tuple, "a tuple of layers"),
            ("multipliers", Multipliers, "a Multipliers"),
            ("clamps_dense", bool, "True or False"),
            ("norms_inputs", bool, "True or False"),
            ("norms_results", bool, "True or False"),
            ("scales_layers", bool, "True or False"),
        ):
            if not isinstance(getattr(self, name), kind):
                given = described(getattr(self, name))
                raise ConfigError(f"ModelConfig.{name} must be {allowed}, got {given}.")

    def _check_results(self) -> None:
        """Refuse in other layers what those with grouped attention and without experts have.

        Experts with norms of their own have it too.
        """
        has_experts = self.moe is not None and not self.moe.has_own_norms
        is_plain = isinstance(self.attention, GqaConfig) and not has_experts
        named = {
            "norms_results": self.norms_results,
            "norms_inputs": not self.norms_inputs,
            "scales_layers": self.scales_layers,
        }
        for name in (name for name, is_used in named.items() if is_used and not is_plain):
            raise ConfigError(
                f"{self.name}: {name} is about layers with grouped attention, without experts or "
                "with some that have norms of their own."
            )

    def _check_residuals(self) -> None:
        """Refuse attention residuals beside what no model has with them."""
        if self.residual_block is None:
            return
        require_positive(self, "residual_block")
        attention = self.attention
        is_plain = isinstance(attention, MlaConfig) and attention.index is None
        if not is_plain or self.single_blocks or self.multipliers != Multipliers():
            raise ConfigError(
                f"{self.name}: residual_block is about models of latent attention to all positions "
                "whose layers have two blocks each, without multipliers."
            )

    def _check_rotation(self) -> None:
        attention = self.attention
        if isinstance(attention, MlaConfig) and self.rope.dim != attention.rope_head_dim:
            raise ConfigError(
                f"{self.name}: rope.dim must equal the rotated head width "
                f"{attention.rope_head_dim}, got {self.rope.dim}."
            )
        for kind in ("attention", "sliding"):
            own, rope = self.attention_of(kind), self.rope_of(kind)
            if isinstance(own, GqaConfig) and rope.width > own.head_dim:
                name = "dim" if rope.span is None else "span"
                raise ConfigError(
                    f"{self.name}: rope.{name} must be at most the head width {own.head_dim}, got "
                    f"{rope.width}."
                )

    def _check_windows(self) -> None:
        if self.sliding_layers and getattr(self.attention_of("sliding"), "window", None) is None:
            raise ConfigError(f"{self.name}: sliding layers need an attention with a window.")
        if not self.sliding_layers and (self.sliding_attention or self.sliding_rope):
            raise ConfigError(f"{self.name}: no layer slides, so none has an attention of its own.")
        if self.recurrent_layers and self.recurrent is None:
            raise ConfigError(f"{self.name}: recurrent layers need a RecurrentConfig.")
        kinds = ("sliding", "unrotated", "recurrent", "following", "blocked")
        for name in (f"{kind}_layers" for kind in kinds):
            layers = getattr(self, name)
            if list(layers) != sorted(set(layers)) or not set(layers) <= set(range(self.n_layers)):
                raise ConfigError(
                    f"{self.name}: {name} must be ascending layers from 0 to "
                    f"{self.n_layers - 1}, got {layers}."
                )
        attends = set(self.sliding_layers) | set(self.unrotated_layers)
        if attends & set(self.recurrent_layers):
            raise ConfigError(
                f"{self.name}: a recurrent layer must be neither a sliding one nor one without "
                f"rotation, got {sorted(attends & set(self.recurrent_layers))}."
            )
        both = sorted(set(self.sliding_layers) & set(self.unrotated_layers))
        if both:
            raise ConfigError(
                f"{self.name}: a layer without rotation must not be a sliding one, got {both}."
            )

    def _check_single_blocks(self) -> None:
        kinds = self.single_blocks
        if not kinds:
            return
        if len(kinds) != self.n_layers or not set(kinds) <= set(get_args(LayerKind)):
            raise ConfigError(
                f"{self.name}: single_blocks must be {self.n_layers} of "
                f"{', '.join(get_args(LayerKind))}, got {kinds}."
            )
        others = self.unrotated_layers + self.recurrent_layers + self.blocked_layers
        if self.sliding_layers or others:
            raise ConfigError(f"{self.name}: single_blocks alone must say what layers are.")
        parts = {"recurrent": self.recurrent, "moe": self.moe}
        for kind in (kind for kind, part in parts.items() if kind in kinds and part is None):
            raise ConfigError(f"{self.name}: {kind} blocks were given, but not what they are.")
        if "sliding" in kinds or (self.moe is not None and self.moe.n_dense_layers):
            raise ConfigError(
                f"{self.name}: layers of one block each must not slide, nor may n_dense_layers say "
                "which have no experts."
            )

    def with_latent_form(self, form: LatentForm) -> "ModelConfig":
        """Return the same model with its latent attention computed in another form.

        Raises:
            ConfigError: it has no latent attention, or there is no such form.
        """
        if not isinstance(self.attention, MlaConfig):
            raise ConfigError(f"{self.name} has no latent attention: form {form} does not apply.")
        return replace(self, attention=replace(self.attention, form=form))

    def layer_kinds(self, layer: int) -> tuple[LayerKind, ...]:
        """Return the kinds of the blocks of layer `layer` (from 0), as a token meets them.

        Raises:
            ConfigError: if the model has no such layer.
        """
        if not 0 <= layer < self.n_layers:
            raise ConfigError(f"{self.name}: layer must be 0 to {self.n_layers - 1}, got {layer}.")
        if self.single_blocks:
            return (self.single_blocks[layer],)
        mixes: LayerKind = "unrotated" if layer in self.unrotated_layers else "attention"
        if getattr(self.attention, "index", None) is not None:
            mixes = "following" if layer in self.following_layers else "indexed"
        elif layer in self.recurrent_layers:
            mixes = "recurrent"
        elif layer in self.sliding_layers:
            mixes = "sliding"
        elif layer in self.blocked_layers:
            mixes = "blocked"
        has_experts = self.moe is not None and self.moe.is_in_layer(layer)
        return mixes, "moe" if has_experts else "dense"

    @cached_property
    def kind_counts(self) -> Mapping[str, int]:
        """How many blocks of each kind the layers have."""
        return Counter(kind for layer in range(self.n_layers) for kind in self.layer_kinds(layer))

    @property
    def index(self) -> IndexConfig:
        """The index of the layers that have one."""
        assert isinstance(self.attention, MlaConfig)
        assert self.attention.index is not None
        return self.attention.index

    @property
    def block_index(self) -> BlockIndexConfig:
        """The index of the layers that attend to blocks."""
        assert isinstance(self.attention, GqaConfig)
        assert self.attention.block_index is not None
        return self.attention.block_index

    def followed_layer(self, layer: int) -> int:
        """Return the layer whose index says where a layer attends, or itself."""
        return max(one for one in range(layer + 1) if one not in self.following_layers)

    def attention_of(self, kind: str) -> GqaConfig | MlaConfig:
        """Return the attention of a kind of block: sliding layers may have their own."""
        own = self.sliding_attention if kind == "sliding" else None
        return self.attention if own is None else own

    def rope_of(self, kind: str) -> RopeConfig:
        """Return the rotation of a kind of block: sliding layers may have their own."""
        own = self.sliding_rope if kind == "sliding" else None
        return self.rope if own is None else own

    def is_moe_layer(self, layer: int) -> bool:
        """Return whether layer `layer` (from 0) holds experts.

        Raises:
            ConfigError: if the model has no such layer.
        """
        return "moe" in self.layer_kinds(layer)

    @property
    def n_moe_layers(self) -> int:
        """Layers that hold experts."""
        return self.kind_counts.get("moe", 0)

    @property
    def n_states(self) -> int:
        """States that pass from block to block: the embedding and a sum of each block of layers."""
        return 1 if self.residual_block is None else 1 - -self.n_layers // self.residual_block

    @property
    def hidden_width(self) -> int:
        """Values that pass from block to block for each token: all states, side by side."""
        return self.n_states * self.d_model

    @property
    def d_routed(self) -> int:
        """Width of the rows that routed experts take and give: the model's, or of a latent."""
        latent = None if self.moe is None else self.moe.d_latent
        return self.d_model if latent is None else latent

    def kv_bytes_per_token(self, bytes_per_value: int | float = 2) -> float:
        """Return the cache bytes of one token over all layers; recurrent ones keep none."""
        values = sum(
            n * self.attention_of(kind).cached_values_per_token
            for kind, n in self.kind_counts.items()
            if kind not in ("recurrent", "dense", "moe")
        )
        if n_indexed := self.kind_counts.get("indexed", 0):
            values += n_indexed * self.index.head_dim
        if self.blocked_layers:
            values += len(self.blocked_layers) * self.block_index.head_dim
        return float(values * bytes_per_value)

    def state_bytes_per_sequence(self, bytes_per_value: int | float = 2) -> float:
        """Return the bytes of one sequence's states over all recurrent layers.

        Args:
            bytes_per_value: of the last inputs of convolutions; the states themselves are fp32.
        """
        if self.recurrent is None:
            return 0.0
        kept = (self.recurrent.taps - 1) * self.recurrent.convolved_values
        layer = 4 * self.recurrent.state_values + kept * bytes_per_value
        return float(self.kind_counts.get("recurrent", 0) * layer)
