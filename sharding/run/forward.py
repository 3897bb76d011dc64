"""A whole model on the chips of a plan: tokens in, the logits of every position out.

Streams block by block: a block's weights are read, placed, run on all tokens and dropped, its cache
with them, so that one block is in memory at a time. Not here: choice of tokens (`generate`),
comparison with a reference (`sharding.verify`), and stores of only those experts that are in use.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from lpu_jax.arguments import described
from lpu_jax.errors import PlanError
from lpu_jax.machine.mixed import Machine
from lpu_jax.predicates import is_whole
from models.blocks import CACHING_KINDS, block_chain
from models.config import ModelConfig
from models.params import Kind
from models.policy import Policy
from models.weights.source import WeightSource

from ..axes import allocated_positions
from ..legal import check_parts
from ..plan import Plan, check_is_plan
from ..report import Watcher, check_watcher
from ..request import Request
from ..scenario import (
    machine_of,
    policy_of,
    policy_of_values,
    require_values,
    source_config,
)
from .execute import Relay, check_execution, run_attention, run_block, with_inputs
from .load import LoadedBlock, place_block, store_block

#: Rows that the head takes at once: its results are as wide as the vocabulary.
_HEAD_ROWS = 64


def forward(
    source: WeightSource,
    system: str | Path | Machine,
    plan: Plan,
    tokens: Int[np.ndarray, "b t"],
    *,
    policy: str | Policy,
    step: int | None = None,
    context: int | None = None,
    execution: str = "virtual",
    progress: Watcher = lambda *_: None,
) -> Float32[np.ndarray, "b t vocab"]:
    """Run whole sequences through all blocks of a model, sharded as a plan says.

    Args:
        source: weights, read one block at a time.
        system: a system's name, the path of a TOML file, or a system; its node and rack sizes fix
            the order of sums across chips. A mixed one has attention, embedding and head on its
            GPUs, and multiplies there by a model of their tensor cores.
        plan: how blocks are split. Stages change no value, so all blocks run on one group of chips.
            Shares that the search leaves out, such as 24 positions on two chips or two sequences on
            three, have values too, and a part that the model has no blocks for says nothing.
        tokens: token ids from position 0 on. No position sees a later one, so shorter sequences
            may be padded at their end with any token.
        policy: name of a precision policy, or a policy.
        step: new tokens of each sequence per run of a block: None is prefill, all at once; 1 is
            decoding, token by token with a cache. A block runs all steps before the next is read.
        context: allocated positions of the cache; by default the least whole number of vectors,
            one at least for each chip that shares them out.
        execution: as for `execute.run_block`.
        progress: called with the steps done, the steps in all and what comes next;
            a step is a block.

    Returns:
        Logits of every position.

    Raises:
        LpuError: it is GPUs alone, or an argument is not what it should be.
        UnknownNameError: there is no such execution.
        PlanError: no tokens, or more than the model has positions or the cache has room for; an
            id that is not in the vocabulary; a plan that does not split the model's blocks.
        WeightsError: the source cannot give a block.

    Fidelity: that of `policy`: every block runs the datapath's own rounding.
    """
    machine = machine_of(system)
    require_values(machine, "forward")
    check_execution(execution)
    check_watcher("forward", progress)
    check_is_plan("forward", plan)
    cfg = source_config(source)
    formats = policy_of_values(policy_of(policy, cfg), machine)
    check_parts(plan, cfg)
    _check_tokens(cfg, tokens, step)
    batch, n_tokens = tokens.shape
    step = n_tokens if step is None else min(step, n_tokens)
    # Padding of the last step is behind every token that counts.
    n_padded = -(-n_tokens // step) * step
    context = allocated_positions(plan, n_padded) if context is None else context
    most = allocated_positions(plan, max(cfg.max_position, n_padded))
    if not is_whole(context) or not n_padded <= context <= most:
        raise PlanError(
            f"forward: {n_padded} positions are needed and {most} at most; {described(context)} "
            "were asked for."
        )
    ids = np.pad(tokens, ((0, 0), (0, n_padded - n_tokens))).astype(np.int32)
    pieces: list[Any] = np.split(ids, n_padded // step, axis=1)

    def placed(kind: Kind, layer: int, batch: int, step: int) -> LoadedBlock:
        stored = store_block(source, kind, layer, formats)
        request = Request(batch=batch, tokens=step, context=context)
        return place_block(stored, machine, plan, request, widen_once=True)

    relays = [Relay() for _ in pieces]
    *body, head = block_chain(cfg)
    for done, block in enumerate(body):
        progress(done, len(body) + 1, f"{block.kind} of layer {block.layer}")
        # Without a name, which would keep the block while the next one is read.
        pieces = _run(cfg, placed(block.kind, block.layer, batch, step), pieces, relays, execution)
    progress(len(body), len(body) + 1, "head")
    rows = jnp.concatenate(pieces, axis=1)[:, :n_tokens].reshape(batch * n_tokens, 1, -1)
    last = placed("head", head.layer, min(len(rows), _HEAD_ROWS), 1)
    return _logits(cfg, last, rows, execution).reshape(batch, n_tokens, cfg.vocab_size)


def _check_tokens(cfg: ModelConfig, tokens: Int[np.ndarray, "b t"], step: int | None) -> None:
    is_array = isinstance(tokens, np.ndarray) and np.issubdtype(tokens.dtype, np.integer)
    if not is_array or tokens.ndim != 2:
        raise PlanError(
            f"forward: tokens is {described(tokens)}; it must be an integer array of NumPy, "
            "[sequences, tokens]."
        )
    if not tokens.size:
        raise PlanError("forward: no tokens were given; at least one is needed.")
    if step is not None and not (is_whole(step) and step >= 1):
        raise PlanError(
            f"forward: steps of {described(step)} tokens were asked for; it must be at least 1."
        )
    if tokens.shape[1] > cfg.max_position:
        raise PlanError(
            f"forward: {tokens.shape[1]} tokens were given; {cfg.name} has {cfg.max_position} "
            "positions."
        )
    beyond = tokens[(tokens < 0) | (tokens >= cfg.vocab_size)]
    if beyond.size:
        raise PlanError(
            f"forward: token {int(beyond[0])} was given; {cfg.name} has 0 to {cfg.vocab_size - 1}."
        )


def _run(
    cfg: ModelConfig,
    block: LoadedBlock,
    pieces: Sequence[Any],
    relays: Sequence[Relay],
    execution: str,
) -> list[Float[Array, "b step d"]]:
    """Run a block on one piece of the sequences after the other."""
    if block.kind not in CACHING_KINDS:
        return [run_block(cfg, with_inputs(block, piece), execution=execution) for piece in pieces]
    outputs = []
    cache = block.arguments[2]
    for i, (piece, relay) in enumerate(zip(pieces, relays, strict=True)):
        batch, step, _ = piece.shape
        starts = np.full(batch, i * step, np.int32)
        out, cache = run_attention(
            cfg, block, piece, cache, starts, relay=relay, execution=execution
        )
        outputs.append(out)
    return outputs


def _logits(
    cfg: ModelConfig, block: LoadedBlock, rows: Float[Array, "n 1 d"], execution: str
) -> Float32[np.ndarray, "n vocab"]:
    """Run the head on every row: each is a sequence of one token to it."""
    at_once = block.request.batch
    padded = jnp.pad(rows, ((0, -len(rows) % at_once), (0, 0), (0, 0)))
    first = np.zeros(at_once, np.int32)
    logits = np.empty((len(padded), cfg.vocab_size), np.float32)
    for i in range(0, len(padded), at_once):
        inputs = with_inputs(block, padded[i : i + at_once], first)
        _, part = run_block(cfg, inputs, execution=execution)
        logits[i : i + at_once] = np.asarray(part)[:, : cfg.vocab_size]
    return logits[: len(rows)]
