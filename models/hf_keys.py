"""Read the keys of a parsed `config.json`: right types, sane limits, and nothing overlooked.

Knows which keys say nothing about a network, but no model and no size of one.
"""

import json
from collections.abc import Mapping
from typing import Any

from lpu_jax.errors import ConfigError
from lpu_jax.quantities import format_given

#: Keys that say nothing about the network: bookkeeping, training, text generation and, in the last
#: line, sizes that follow from others.
_HARMLESS = """
_name_or_path architectures auto_map transformers_version torch_dtype dtype model_type
tokenizer_class prefix problem_type finetuning_task task_specific_params pruned_heads torchscript
use_bfloat16 tf_legacy_loss unsloth_version unsloth_fixed _commit_hash trust_remote_code
is_llama_config internal_version transformers.js_config tokenizer_model_max_length model_max_length
attn_implementation _attn_implementation _attn_implementation_autoset _attn_implementation_internal
_experts_implementation experts_implementation _flash_attn_2_enabled use_flash_attn
keys_to_ignore_at_inference gradient_checkpointing cache_implementation
initializer_range rescale_prenorm_residual attention_dropout hidden_dropout embedding_dropout
output_dropout resid_pdrop embd_pdrop attn_pdrop attention_probs_dropout_prob hidden_dropout_prob
classifier_dropout
aux_loss_alpha router_aux_loss_coef router_jitter_noise output_router_logits seq_aux
mtp_loss_scaling_factor pretraining_tp ep_size moe_shared_expert_overlap
use_cache num_logits_to_keep pad_token_id sep_token_id decoder_start_token_id id2label label2id
return_dict
return_dict_in_generate do_sample early_stopping max_length min_length num_beams num_beam_groups
num_return_sequences temperature top_k top_p typical_p repetition_penalty length_penalty
diversity_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size output_attentions
output_hidden_states output_scores is_decoder is_encoder_decoder
bad_words_ids suppress_tokens begin_suppress_tokens forced_bos_token_id forced_eos_token_id
exponential_decay_length_penalty remove_invalid_values chunk_size_feed_forward
head_dim qk_head_dim max_window_layers
"""
_HARMLESS_KEYS = frozenset(_HARMLESS.split())

#: Limits of what a file may say. No size of a network comes near them; beyond them, arithmetic on
#: bytes would leave 64 bits, or a list of layers would fill the memory of this computer.
MOST = 2**40
MOST_LAYERS = 10_000
LEAST_NUMBER = 1e-20


class Keys:
    """A dictionary that remembers what was read from it and words its own complaints.

    A method that reads takes the spellings of one key; a file may use several if they agree. None
    as the default makes the key necessary. `defaults` are those of the type's own class, for keys
    that the file leaves out; null is no such key.
    """

    def __init__(
        self, values: Mapping[str, Any], where: str, defaults: Mapping[str, Any] | None = None
    ) -> None:
        self.values = values
        self.where = where
        self.defaults = {} if defaults is None else defaults
        self.read: set[str] = set()

    def has(self, *spellings: str) -> bool:
        """Whether the file gives the key a value other than null."""
        return any(self.values.get(key) is not None for key in spellings)

    def complain(self, key: str, expected: str) -> ConfigError:
        """Word the error that `key` is not as `expected`."""
        got = f"got {format_given(self.values[key])}" if key in self.values else "it is missing"
        return ConfigError(f"{self.where}: key {key!r} must be {expected}; {got}.")

    def integer(
        self, *spellings: str, default: int | None = None, least: int = 1, most: int = MOST
    ) -> int:
        """Read a whole number."""
        key, value = self._take(spellings, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.complain(key, f"a whole number from {least} to {most}")
        return value

    def number(self, *spellings: str, default: float | None = None) -> float:
        """Read a number above 0."""
        key, value = self._take(spellings, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not LEAST_NUMBER <= value <= MOST:
            raise self.complain(key, f"a number from {LEAST_NUMBER} to {MOST}")
        return float(value)

    def below_zero(self, key: str) -> float:
        """Read a number below 0."""
        _, value = self._take((key,), None)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not LEAST_NUMBER <= -value <= MOST:
            raise self.complain(key, f"a number from -{MOST} to -{LEAST_NUMBER}")
        return float(value)

    def optional_number(self, *spellings: str) -> float | None:
        """Read a number above 0, or None where the file gives none."""
        _, value = self._take(spellings, None)
        return None if value is None else self.number(*spellings)

    def optional_integer(self, *spellings: str) -> int | None:
        """Read a whole number above 0, or None where the file gives none."""
        _, value = self._take(spellings, None)
        return None if value is None else self.integer(*spellings)

    def boolean(self, *spellings: str, default: bool | None = None) -> bool:
        """Read true or false."""
        key, value = self._take(spellings, default)
        if not isinstance(value, bool):
            raise self.complain(key, "true or false")
        return value

    def text(self, *spellings: str, default: str | None = None) -> str:
        """Read a string."""
        key, value = self._take(spellings, default)
        if not isinstance(value, str) or not value.isprintable():
            raise self.complain(key, "a string of printable characters")
        return value

    def optional_text(self, *spellings: str) -> str | None:
        """Read a string, or None where the file gives none."""
        _, value = self._take(spellings, None)
        return None if value is None else self.text(*spellings)

    def texts(self, key: str) -> tuple[str, ...]:
        """Read a list of strings; an absent one is empty."""
        _, value = self._take((key,), [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.complain(key, "a list of strings")
        return tuple(value)

    def integers(self, key: str, default: list[int]) -> tuple[int, ...]:
        """Read a list of whole numbers, 0 or more."""
        _, value = self._take((key,), default)
        items = value if isinstance(value, list) else [value]
        if not all(type(item) is int and 0 <= item <= MOST for item in items):
            raise self.complain(key, "a list of whole numbers, 0 or more")
        return tuple(items)

    def mapping(self, key: str) -> "Keys | None":
        """Read a part of the file that has keys of its own; an empty one is none."""
        _, value = self._take((key,), None)
        if value is None or value == {}:
            return None
        if not isinstance(value, Mapping):
            raise self.complain(key, "an object or null")
        return Keys(value, f"{self.where}, {key}", self.defaults)

    def must_be(self, key: str, *allowed: object) -> None:
        """Accept a key that is absent, null, or has one of the values this program models."""
        self.read.add(key)
        given = self.values.get(key)
        if given is None or any(_equal(given, one) for one in allowed):
            return
        what = "the only value supported" if len(allowed) == 1 else "the only values supported"
        raise self.complain(key, f"{' or '.join(json.dumps(one) for one in allowed)}, {what}")

    def must_say(self, key: str, one: object) -> None:
        """Accept a key that has the one value this program models; left out, it has another."""
        self.must_be(key, one)
        if not self.has(key):
            raise self.complain(key, f"{json.dumps(one)}, the only value supported")

    def token_ids(self, key: str) -> tuple[int, ...]:
        """Read a token number, or a list of them."""
        _, value = self._take((key,), [])
        ids = value if isinstance(value, list) else [value]
        if not all(type(item) is int and 0 <= item <= MOST for item in ids):
            raise self.complain(key, "a token number or a list of them")
        return tuple(ids)

    def finish(self) -> None:
        """Refuse any unread key that could set a size or switch something on.

        Raises:
            ConfigError: an unknown key whose value is not null, false, 0 or empty.
        """
        for key, value in self.values.items():
            if value and key not in self.read and key not in _HARMLESS_KEYS:
                raise ConfigError(
                    f"{self.where}: key {format_given(key)} = {format_given(value)} is not known "
                    f"to this program and may set a size or switch a part on."
                )

    def _take(self, spellings: tuple[str, ...], default: object) -> tuple[str, Any]:
        """Return the spelling the file uses and its value, or the first one and the default."""
        self.read.update(spellings)
        given = [key for key in spellings if self.values.get(key) is not None]
        if not given:
            named = [key for key in spellings if key in self.values]
            usual = [] if named else [key for key in spellings if key in self.defaults]
            if usual:
                return usual[0], self.defaults[usual[0]]
            return (named or list(spellings))[0], default
        first = self.values[given[0]]
        for other in given[1:]:
            if self.values[other] != first:
                raise self.complain(other, f"{format_given(first)}, as {given[0]!r} says")
        return given[0], first


def _equal(given: object, one: object) -> bool:
    """Compare as JSON does: 1 and 1.0 are one number, true is none."""
    return given == one and isinstance(given, bool) == isinstance(one, bool)
