"""The two ends of a model in a check: tokens to hidden states, hidden states to logits.

Neither table is made whole. The embedding's rows in use go to the chips that would hold them; the
output matrix passes in pieces of its columns, each split over all chips. Both give the bits of the
whole block, for a row is sent as it is and a logit needs no column but its own. Not here: what the
logits are compared with.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int

from lpu_jax.machine.mixed import Machine
from models.params import Kind, block_params
from models.policy import Policy
from models.reference import reference_block
from models.weights.source import Weights, WeightSource
from models.weights.stored import dequantised

from ..axes import degrees, sizes
from ..plan import Plan
from ..request import Request
from ..run.execute import run_block, with_inputs
from ..run.load import StoredBlock, place_block, store_weight, stored_values
from .emulate import Run

#: Columns of the output matrix in memory at once; whole blocks of any storage format.
_COLUMNS = 1 << 14

Logits = Float32[np.ndarray, "tokens vocab"]


@runtime_checkable
class TokenSource(Protocol):
    """A weight source that makes or reads the ends of a model for some tokens alone."""

    def of_tokens(self, kind: str, tokens: Int[np.ndarray, " n"]) -> Weights:
        """Return "embed" with the table's rows, or "head" with the columns, of these tokens."""


def embed_tokens(
    source: WeightSource,
    system: Machine,
    plan: Plan,
    token_ids: Sequence[int],
    *,
    policy: Policy,
    execution: str = "virtual",
) -> Run:
    """Look tokens up on the chips of a plan, and in the reference.

    Args:
        source: weights.
        system: its node and rack sizes fix the order of sums across chips.
        plan: its chips share the vocabulary.
        token_ids: in the order of their positions.
        policy: formats.
        execution: as for `execute.run_block`.

    Returns:
        A run with both hidden states `[tokens, d]`.

    Fidelity: exact.
    """
    cfg = source.config
    ids = np.asarray(token_ids, np.int64)
    used, position = np.unique(ids, return_inverse=True)
    stored = _stored_tokens(source, "embed", used, policy)
    ways = degrees(plan, "embed", cfg)
    share = sizes(cfg, "embed", policy, ways, Request(context=1)).local["vocab"]
    chip = used // share
    # Each chip holds its rows in use and as many zeros as the fullest one has rows more.
    rows = int(np.bincount(chip).max())
    number = chip * rows + _count_within(chip)
    table = stored.weights["table"]
    compact = np.zeros((ways["tensor"] * rows, cfg.d_model), table.dtype)
    compact[number] = table
    small = replace(stored, cfg=replace(cfg, vocab_size=len(compact)), weights={"table": compact})
    block = place_block(small, system, plan, Request(tokens=len(ids), context=len(ids)))
    tokens = number[position].astype(np.int32)[None]
    hidden = run_block(small.cfg, with_inputs(block, tokens), execution=execution)
    table = stored_values(table, block_params(small.cfg, "embed")["table"])
    module = reference_block(cfg, "embed", {"table": table})
    reference = module(jnp.asarray(position.astype(np.int32))[None])
    return Run(plan=plan, hidden=np.asarray(hidden)[0], reference=np.asarray(reference)[0])


def _count_within(groups: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Number the members of each group; groups are ascending."""
    return np.arange(len(groups)) - np.searchsorted(groups, groups)


def run_head(
    source: WeightSource,
    system: Machine,
    runs: Sequence[Run],
    *,
    policy: Policy,
    execution: str = "virtual",
) -> list[tuple[Logits, Logits]]:
    """Make the logits of every token, of the reference and emulated.

    Args:
        source: weights.
        system: its node and rack sizes fix the order of sums across chips.
        runs: hidden states at the entry of the head.
        policy: formats, and how products are made.
        execution: as for `execute.run_block`.

    Returns:
        For each run the reference's logits and the emulated ones.

    Fidelity: that of `policy`; the reference is float32 and order-dependent.
    """
    cfg = source.config
    n_tokens = len(runs[0].hidden)
    shape = (n_tokens, cfg.vocab_size)
    made = [(np.empty(shape, np.float32), np.empty(shape, np.float32)) for _ in runs]
    for columns, piece in _head_pieces(source, policy):
        n = columns.stop - columns.start
        specs = block_params(piece.cfg, "head")
        values = {name: stored_values(w, specs[name]) for name, w in piece.weights.items()}
        module: Any = reference_block(piece.cfg, "head", values)
        for run, (expected, logits) in zip(runs, made, strict=True):
            expected[:, columns] = np.asarray(module(jnp.asarray(run.reference)[None]))[0, :, :n]
            request = Request(batch=n_tokens, context=1)
            block = place_block(piece, system, run.plan, request, widen_once=True)
            inputs = with_inputs(block, run.hidden[:, None], np.zeros(n_tokens, np.int32))
            _, found = run_block(piece.cfg, inputs, execution=execution)
            logits[:, columns] = np.asarray(found)[:, :n]
    return made


def _head_pieces(source: WeightSource, policy: Policy) -> Iterator[tuple[slice, StoredBlock]]:
    """Yield the head for some tokens after the other; all pieces have the same shape."""
    cfg = source.config
    scheme = policy.scheme(block_params(cfg, "head")["out"])
    # A scale that is shared by all columns is that of the whole matrix.
    is_whole = not isinstance(source, TokenSource) or (
        scheme is not None
        and scheme.scale_format is not None
        and (scheme.block_columns is None or scheme.is_two_level)
    )
    width = cfg.vocab_size if is_whole else min(cfg.vocab_size, _COLUMNS)
    for first in range(0, cfg.vocab_size, width):
        columns = slice(first, min(first + width, cfg.vocab_size))
        tokens = np.arange(columns.start, columns.stop)
        yield columns, _stored_tokens(source, "head", tokens, policy, width)


def _stored_tokens(
    source: WeightSource,
    kind: Kind,
    tokens: Int[np.ndarray, " n"],
    policy: Policy,
    width: int | None = None,
) -> StoredBlock:
    """Store an end of the model as if it knew these tokens alone, padded to `width` of them."""
    cfg = replace(source.config, vocab_size=len(tokens) if width is None else width)
    specs = block_params(cfg, kind)
    weights = {}
    for name, values in _of_tokens(source, kind, tokens).items():
        missing = [want - have for want, have in zip(specs[name].shape, values.shape, strict=True)]
        padded = np.pad(dequantised(values), [(0, n) for n in missing]) if any(missing) else values
        weights[name] = store_weight(padded, specs[name], policy)
    return StoredBlock(cfg=cfg, kind=kind, policy=policy, weights=weights)


def _of_tokens(source: WeightSource, kind: Kind, tokens: Int[np.ndarray, " n"]) -> Weights:
    """Read the rows of the table, or the columns of the output matrix, of these tokens."""
    if isinstance(source, TokenSource):
        return source.of_tokens(kind, tokens)
    whole = {name: dequantised(weight) for name, weight in source.block(kind).items()}
    if kind == "embed":
        return {"table": whole["table"][tokens]}
    return {**whole, "out": whole["out"][:, tokens]}
