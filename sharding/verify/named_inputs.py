"""What a check is asked for, from words to values: model and weights, layers, tokens.

Nothing is run here, and of a checkpoint only headers are read.
"""

from dataclasses import dataclass, fields
from pathlib import Path

from lpu_jax.errors import LpuError, WeightsError
from models.config import LatentForm, ModelConfig
from models.weights.checkpoint import open_checkpoint
from models.weights.source import WeightSource
from models.weights.synthetic import SyntheticWeights
from models.zoo import model as named_model

from ..files import reading

#: The word for random weights.
SYNTHETIC = "synthetic"

_WEIGHT_FILES = (".safetensors", ".gguf", ".index.json")
#: What two descriptions of one model may say differently.
_LABELS = (
    "name",
    "released_format",
    "bos_token_id",
    "eos_token_ids",
    "max_position",
    "n_prediction_layers",
)


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A model and where its weights come from."""

    source: WeightSource
    weights_name: str  #: changes whenever the weights do

    @property
    def config(self) -> ModelConfig:
        """The model."""
        return self.source.config


def open_model(
    model: str, weights: str | None = None, seed: int = 0, mla: LatentForm | None = None
) -> OpenedModel:
    """Find a model and its weights.

    Args:
        model: a zoo name, the path of a `config.json`, or of a checkpoint.
        weights: "synthetic", or the path of a checkpoint; None: the model's own if `model` is a
            checkpoint, else synthetic.
        seed: of synthetic weights.
        mla: form of its latent attention; None for the usual one.

    Raises:
        UnknownNameError: there is no such model.
        ConfigError: its configuration cannot be understood, or it has no latent attention.
        WeightsError: the weights are broken, or belong to another model.
    """
    opened = _open(model, weights, seed)
    if mla is None:
        return opened
    cfg, source = opened.config.with_latent_form(mla), opened.source
    if isinstance(source, SyntheticWeights):
        changed: WeightSource = SyntheticWeights(cfg, seed)
    else:
        changed = open_checkpoint(weights or model).with_config(cfg).weights
    return OpenedModel(source=changed, weights_name=f"{opened.weights_name}, {mla}")


def _open(model: str, weights: str | None, seed: int) -> OpenedModel:
    if weights is None and _has_weights(Path(model)):
        return _opened(Path(model))
    if Path(model).is_dir() and not (Path(model) / "config.json").exists():
        raise LpuError(
            f"{model}: this folder has neither a config.json nor weights; a model is a name, a "
            "config.json, a folder that holds one, or a checkpoint (safetensors with their "
            "config.json, or GGUF)."
        )
    cfg = open_checkpoint(model).config if _is_weight_file(Path(model)) else named_model(model)
    if weights is None or weights == SYNTHETIC:
        return OpenedModel(
            source=SyntheticWeights(cfg, seed), weights_name=f"{SYNTHETIC}, seed {seed}"
        )
    opened = _opened(Path(weights))
    for name in (field.name for field in fields(cfg) if field.name not in _LABELS):
        asked, found = getattr(cfg, name), getattr(opened.config, name)
        if asked != found:
            raise WeightsError(
                f"weights {weights} belong to another model than {cfg.name}: {name} is {found}, "
                f"not {asked}."
            )
    return opened


def _opened(path: Path) -> OpenedModel:
    checkpoint = open_checkpoint(path)
    with reading(str(path)):
        folder = path if path.is_dir() else path.parent
        files = [path] if path.suffix == ".gguf" else sorted(folder.iterdir())
        states = [(file.name, file.stat()) for file in files if _is_weight_file(file)]
    listed = ", ".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in states)
    return OpenedModel(source=checkpoint.weights, weights_name=f"{path.resolve()}: {listed}")


def _is_weight_file(path: Path) -> bool:
    return path.name.endswith(_WEIGHT_FILES)


def _has_weights(path: Path) -> bool:
    with reading(str(path)):
        if path.is_dir():
            return any(_is_weight_file(file) for file in path.iterdir())
    return _is_weight_file(path)


def layers_named(text: str, cfg: ModelConfig) -> tuple[int, ...]:
    """Read which layers are meant.

    Args:
        text: "all", "N" for the first N, "A-B" for a range, ends included, or several layers and
            ranges separated by commas.
        cfg: the model.

    Raises:
        LpuError: it is none of these, or names a layer that the model does not have.
    """
    if text == "all":
        return tuple(range(cfg.n_layers))
    parts = [part.split("-") for part in text.split(",")]
    if not all(len(part) <= 2 and all(end.isdecimal() for end in part) for part in parts):
        raise LpuError(
            f"layers {text!r} were asked for; allowed are all, a number of layers, a range such "
            "as 3-5, or a list such as 0,3-5."
        )
    if len(parts) == 1 and len(parts[0]) == 1:
        n_layers = int(text)
        if not 1 <= n_layers <= cfg.n_layers:
            raise LpuError(f"{n_layers} layers were asked for; {cfg.name} has {cfg.n_layers}.")
        return tuple(range(n_layers))
    layers: list[int] = []
    for part in parts:
        first, last = int(part[0]), int(part[-1])
        if last >= cfg.n_layers or first > last:
            raise LpuError(
                f"layers {'-'.join(part)} were asked for; {cfg.name} has 0 to {cfg.n_layers - 1}."
            )
        layers += range(first, last + 1)
    return tuple(layers)


def token_ids_named(text: str) -> tuple[int, ...]:
    """Read token ids: numbers separated by commas.

    Raises:
        LpuError: something else was given.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise LpuError(f"token ids {text!r} were given; they must be numbers separated by commas.")
    return tuple(int(part) for part in parts)
