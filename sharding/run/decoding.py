"""All blocks of a model on the chips of a plan, with their caches: several sequences, step by step.

Prompts are padded to a bucket, so that prompts of many lengths share two compiled programs per kind
of block. Choosing tokens and ending sequences is the job of `generate`. Weights of all blocks are
held at once, and so are all routed experts.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from lpu_jax.arguments import described
from lpu_jax.errors import PlanError
from lpu_jax.machine.system import System
from lpu_jax.predicates import is_whole
from models.blocks import BLOCK_KINDS, CACHING_KINDS, Block, Kind, block_chain
from models.config import ModelConfig
from models.policy import Policy
from models.weights.source import WeightSource

from ..axes import allocated_positions
from ..plan import Plan
from ..request import Request
from .execute import Relay, check_execution, on_chips, run_attention, run_block, with_inputs
from .load import LoadedBlock, place_block, store_block

#: Prompts are padded to a multiple of this many tokens.
BUCKET = 32


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the chips say comes next in each sequence."""

    tokens: Int[np.ndarray, " b"]  #: the most likely ones, as the chips chose them
    logits: Float32[np.ndarray, "b vocab"]


class Decoder:
    """A model on chips that has read some sequences and can be given their next tokens.

    Args:
        source: weights.
        system: its node and rack sizes fix the order of sums across chips.
        plan: how blocks are split. Stages change no value, so all blocks run on one group of chips.
        prompts: token numbers of each sequence, at least one each.
        policy: formats of the weights, and how products are made.
        n_new: tokens that each sequence may grow by.
        execution: as for `execute.run_block`.

    Raises:
        LpuError: it is a GPU system.
        UnknownNameError: there is no such execution.
        PlanError: there is no prompt, one is empty, or a sequence does not fit the model.

    Fidelity: that of `policy`. With faithful products a sequence's bits do not depend on the
        others, nor on the padding.
    """

    def __init__(
        self,
        source: WeightSource,
        system: System,
        plan: Plan,
        prompts: Sequence[Sequence[int]],
        *,
        policy: Policy,
        n_new: int,
        execution: str = "virtual",
    ) -> None:
        system.require_lpu("generate")
        check_execution(execution)
        self.cfg = source.config
        check_prompts(self.cfg, prompts, n_new)
        self._prompts = [list(prompt) for prompt in prompts]
        self._execution = execution
        self._bucket = -(-max(map(len, prompts)) // BUCKET) * BUCKET
        self._context = allocated_positions(plan, self._bucket + n_new)
        #: how many tokens each sequence has in the cache
        self.positions = np.zeros(len(prompts), np.int32)
        self._placed: dict[int, list[LoadedBlock]] = {self._bucket: [], 1: []}
        self._place(source, system, plan, policy)
        self._caches = [
            loaded.arguments[2] if loaded.kind in CACHING_KINDS else None
            for loaded in self._placed[1]
        ]

    def prefill(self) -> Prediction:
        """Read the prompts, all at once.

        The padding after a prompt writes cache entries that its later tokens overwrite before any
        query may see them, and does not count for states.
        """
        ids = np.zeros((len(self._prompts), self._bucket), np.int32)
        for row, prompt in zip(ids, self._prompts, strict=True):
            row[: len(prompt)] = prompt
        lengths = np.array([len(prompt) for prompt in self._prompts], np.int32)
        made = self._run(ids, lengths - 1, lengths)
        self.positions = lengths
        return made

    def advance(self, tokens: Sequence[int], *, kept: Sequence[bool] | None = None) -> Prediction:
        """Give each sequence one more token.

        Args:
            tokens: of each sequence.
            kept: sequences that grow; what the others are given leaves no trace that matters, as
                their next token takes its place, and changes no state.

        Raises:
            PlanError: a token that the model does not have, or a cache that is full.
        """
        _check_tokens(self.cfg, tokens)
        if (self.positions >= self._context).any():
            raise PlanError(
                f"generate: the cache has {self._context} positions, and a sequence has filled it."
            )
        grown = np.ones(len(tokens), np.int32) if kept is None else np.array(kept, np.int32)
        ids, rows = np.array(tokens, np.int32)[:, None], np.zeros(len(tokens), np.int32)
        made = self._run(ids, rows, grown)
        self.positions = self.positions + grown
        return made

    def _place(self, source: WeightSource, system: System, plan: Plan, policy: Policy) -> None:
        """Put every block onto the chips twice: for the prompts' length and for single tokens."""
        tables: dict[Kind, Any] = {}  # one copy for each kind of block
        chain: tuple[Block, ...] = block_chain(self.cfg)
        for block in chain:
            stored = store_block(source, block.kind, block.layer, policy)
            shared: Any = None
            for tokens, placed in self._placed.items():
                request = Request(
                    batch=len(self._prompts),
                    tokens=tokens,
                    context=self._context,
                    most_tokens=self._bucket,
                )
                loaded = place_block(stored, system, plan, request, widen_once=True)
                # One copy of the weights in memory, whatever the number of tokens.
                shared = loaded.arguments[1] if shared is None else shared
                arguments = (loaded.arguments[0], shared, *loaded.arguments[2:])
                if BLOCK_KINDS[block.kind].has_tables:
                    own = tables.setdefault(block.kind, arguments[3])
                    arguments = (*arguments[:3], own, *arguments[4:])
                loaded = on_chips(replace(loaded, arguments=arguments), self._execution)
                shared = loaded.arguments[1]
                placed.append(loaded)

    def _run(
        self,
        ids: Int[np.ndarray, "b t"],
        rows: Int[np.ndarray, " b"],
        counts: Int[np.ndarray, " b"],
    ) -> Prediction:
        """Run tokens, of which some count, through all blocks; one row of each reaches the head."""
        hidden: Any = ids
        relay = Relay()
        for i, block in enumerate(self._placed[ids.shape[1]]):
            if block.kind in CACHING_KINDS:
                hidden, self._caches[i] = run_attention(
                    self.cfg,
                    block,
                    hidden,
                    self._caches[i],
                    self.positions,
                    counts=counts,
                    relay=relay,
                    execution=self._execution,
                )
            elif block.kind == "head":
                hidden = run_block(
                    self.cfg, with_inputs(block, hidden, rows), execution=self._execution
                )
            else:
                hidden = run_block(self.cfg, with_inputs(block, hidden), execution=self._execution)
        best, logits = (np.asarray(result) for result in hidden)
        return Prediction(tokens=best[:, 0], logits=logits[:, : self.cfg.vocab_size])


def check_prompts(cfg: ModelConfig, prompts: Sequence[Sequence[int]], n_new: int) -> None:
    """Refuse prompts that a model cannot continue by `n_new` tokens.

    Raises:
        PlanError: there is no prompt, one is empty or has a token that the model does not have, no
            token is asked for, or both do not fit the model's positions.
    """
    if not isinstance(prompts, list | tuple) or isinstance(prompts[0] if prompts else (), str):
        raise PlanError(
            f"generate: prompts is {described(prompts)}; it must be a list of prompts, each a list "
            "of token numbers, such as tokenizer.encode(text)."
        )
    if not prompts:
        raise PlanError("generate: no prompt was given; at least one is needed.")
    if not (is_whole(n_new) and n_new >= 1):
        raise PlanError(f"generate: {n_new} new tokens were asked for; it must be at least 1.")
    for number, prompt in enumerate(prompts, 1):
        which = "the prompt" if len(prompts) == 1 else f"prompt {number}"
        if not isinstance(prompt, Sequence | np.ndarray) or isinstance(prompt, str | bytes):
            raise PlanError(
                f"generate: {which} is {described(prompt)}; it must be a list of token numbers."
            )
        if not len(prompt):
            raise PlanError(f"generate: {which} is empty; at least one token is needed.")
        _check_tokens(cfg, prompt)
        needed = len(prompt) + n_new
        if needed > cfg.max_position:
            raise PlanError(
                f"generate: {which} and new tokens need {needed} positions; {cfg.name} has "
                f"{cfg.max_position}."
            )


def _check_tokens(cfg: ModelConfig, tokens: Iterable[Any]) -> None:
    for token in tokens:
        if not (is_whole(token) and 0 <= token < cfg.vocab_size):
            raise PlanError(
                f"generate: token {described(token)} was given; {cfg.name} has 0 to "
                f"{cfg.vocab_size - 1}."
            )
