"""One block of a triple, with random inputs and a random past, run on the chips of a plan.

What comes back belongs to no plan: padding is cut off, and a cache is in order of position.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lpu_jax.mesh import run_devices, run_nested, run_virtual
from lpu_jax.numerics.quantized import QuantizedArray, quantize
from models.blocks import CACHING_KINDS, Block, Kind, block_chain, block_program
from models.config import GqaConfig
from models.weights.source import Arrays
from models.weights.synthetic import SyntheticWeights
from sharding.plan import Plan
from sharding.request import Request
from sharding.run.load import LoadedBlock, StoredBlock, store_block
from sharding.run.unplaced import BlockState, block_state, cache_leaves, restored_block

from .chips import run_one_by_one
from .draw import BATCH, TOKENS, Triple

#: Results by name: the hidden state or the logits, and the cache.
Results = dict[str, np.ndarray]


class _WithZeros:
    """Synthetic weights among which are zeros of both signs and numbers below all formats."""

    _FEW = (-0.0, 0.0, -1e-9, 1e-9)

    def __init__(self, triple: Triple) -> None:
        self.config = triple.cfg
        self._right = SyntheticWeights(triple.cfg, triple.seed)

    def block(self, kind: str, layer: int = 0) -> Arrays:
        return _sown(self._right.block(kind, layer), self._FEW)

    def expert(self, layer: int, expert_id: int) -> Arrays:
        return _sown(self._right.expert(layer, expert_id), self._FEW)


def _sown(arrays: Arrays, numbers: tuple[float, ...]) -> Arrays:
    sown = {}
    for name, values in arrays.items():
        flat = np.array(values).reshape(-1)
        flat[:: max(1, flat.size // 16)][: 4 * len(numbers)] = np.resize(
            np.float32(numbers), len(flat[:: max(1, flat.size // 16)][: 4 * len(numbers)])
        )
        sown[name] = flat.reshape(values.shape)
    return sown


@dataclass
class Subject:
    """A block of a triple's model and what enters it."""

    triple: Triple
    block: Block
    stored: StoredBlock
    inputs: np.ndarray  #: token ids `[b, t]`, or a hidden state `[b, t, d]`
    positions: np.ndarray  #: tokens of each sequence in the cache
    past: dict[str, np.ndarray] | None  #: the cache, in order of position
    _known: dict[Any, Results] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        """The kind of block."""
        return self.block.kind

    def run(
        self,
        plan: Plan | None = None,
        *,
        rows: slice = slice(None),
        step: int = TOKENS,
        context: int | None = None,
        way: str = "chips",
    ) -> Results:
        """Run the block on some sequences, in steps of some tokens.

        Args:
            plan: instead of the triple's.
            rows: which sequences.
            step: new tokens of a step.
            context: allocated positions; by default those of the triple.
            way: chips one by one, or a way of `lpu_jax.mesh`, compiled as a whole or not.
        """
        plan = self.triple.plan if plan is None else plan
        context = self.triple.context if context is None else context
        key = plan, (rows.start, rows.stop), step, context, way
        if key not in self._known:
            self._known[key] = self._run(plan, rows, step, context, way)
        return self._known[key]

    def _run(self, plan: Plan, rows: slice, step: int, context: int, way: str) -> Results:
        inputs, positions = self.inputs[rows], self.positions[rows]
        batch, n_tokens = inputs.shape[:2]
        past = None if self.past is None else {k: v[rows] for k, v in self.past.items()}
        state = BlockState(layer=self.block.layer, stored=self.stored, cache=past)
        request = Request(batch=batch, tokens=step, context=context, most_tokens=n_tokens)
        if self.kind == "head":  # one row of each sequence reaches it
            inputs = inputs.reshape(batch * n_tokens, 1, -1)
            request = Request(batch=len(inputs), tokens=1, context=context)
            positions, batch, step, n_tokens = np.zeros(len(inputs), np.int32), len(inputs), 1, 1
        loaded = restored_block(
            state,
            self.triple.system,
            plan,
            request,
            positions,
            widen_once=self.triple.widen_once,
        )
        run = runner(self.triple, loaded, way)
        arguments = list(loaded.arguments)
        out = []
        for first in range(0, n_tokens, step):
            piece = inputs[:, first : first + step]
            missing = np.shape(arguments[0])[0] - batch
            padded = np.pad(piece, ((0, missing), *((0, 0),) * (piece.ndim - 1)))
            arguments[0] = padded
            results = run(*arguments)
            if self.kind in CACHING_KINDS:
                hidden, arguments[2] = results
                arguments[4] = np.asarray(arguments[4]) + np.int32(step)
                out.append(np.asarray(hidden)[:batch])
            elif self.kind == "head":
                token, logits = results
                out.append(np.asarray(logits)[:, : self.triple.cfg.vocab_size])
                return {"logits": out[0], "token": np.asarray(token)}
            else:
                out.append(np.asarray(results)[:batch])
        found = {"hidden": np.concatenate(out, axis=1)}
        if self.kind in CACHING_KINDS:
            after = positions + np.int32(n_tokens)
            unplaced = block_state(
                self.triple.cfg,
                loaded,
                self.block.layer,
                cache=jax.tree.map(lambda values: np.asarray(values)[:batch], arguments[2]),
                positions=after,
                stored=self.stored,
            )
            found |= dict(unplaced.cache or {})
        return found


def runner(triple: Triple, block: LoadedBlock, way: str) -> Any:
    """The block's program in one way of running."""
    program = block_program(
        triple.cfg,
        block.kind,
        block.policy,
        block.split,
        experts=block.experts,
        dispatch=block.dispatch,
    )
    specs = (block.in_specs, block.out_specs)
    match way:
        case "chips":
            return run_one_by_one(program, block.mesh, *specs)
        case "virtual":
            return run_virtual(program, block.mesh, *specs)
        case "compiled":
            return jax.jit(run_virtual(program, block.mesh, *specs))
        case "devices":
            return jax.jit(run_devices(program, block.mesh, *specs))
        case "nested":
            outermost = next((name for name, n in block.mesh.axes if n > 1), None)
            devices = {} if outermost is None else {outermost: dict(block.mesh.axes)[outermost]}
            return jax.jit(run_nested(program, block.mesh, devices, *specs))
    raise ValueError(f"there is no way of running called {way!r}")


def subjects(triple: Triple) -> list[Subject]:
    """Every kind of block that a triple's model has, each once."""
    blocks = {block.kind: block for block in block_chain(triple.cfg)}
    rng = np.random.default_rng([triple.seed, 1])
    return [_subject(triple, block, rng) for block in blocks.values()]


def _subject(triple: Triple, block: Block, rng: np.random.Generator) -> Subject:
    cfg = triple.cfg
    inputs: Any
    if block.kind == "embed":
        inputs = rng.integers(0, cfg.vocab_size, (BATCH, TOKENS)).astype(np.int32)
        inputs.reshape(-1)[:2] = 0, cfg.vocab_size - 1
    else:
        scale = np.exp2(rng.integers(-2, 3, (BATCH, TOKENS, 1)))
        inputs = (rng.normal(size=(BATCH, TOKENS, cfg.d_model)) * scale).astype(np.float16)
        inputs[..., ::37] = -0.0
    positions = np.zeros(BATCH, np.int32)
    past = None
    if block.kind in CACHING_KINDS:
        # Near the ends of a run of positions that one chip holds, and of the cache.
        near = rng.choice([0, 1, triple.context // 2, triple.context - 4, 316, 319], BATCH)
        positions = np.minimum(near, triple.context - TOKENS).astype(np.int32)
        past = _past(triple, block.kind, positions, rng)
    return Subject(
        triple=triple,
        block=block,
        stored=store_block(_WithZeros(triple), block.kind, block.layer, triple.policy),
        inputs=inputs,
        positions=positions,
        past=past,
    )


def _past(
    triple: Triple, kind: Kind, positions: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray] | None:
    """A cache of random values, as long as the longest sequence, or as its window."""
    n_kept = int(positions.max())
    attention = triple.cfg.attention_of(kind)
    if kind == "sliding" and isinstance(attention, GqaConfig):
        assert attention.window is not None
        n_kept = min(n_kept, attention.window - 1)
    if not n_kept:
        return None
    leaves = cache_leaves(
        triple.cfg, kind, triple.policy, Request(batch=BATCH, context=triple.context)
    )
    past = {}
    for name, axis in (("keys", -1), ("values", -2)):
        leaf = leaves[name]
        shape = list(leaf.shape)
        shape[axis] = n_kept
        values = rng.normal(size=shape).astype(np.float16)
        if isinstance(leaf, QuantizedArray):
            made = quantize(jnp.asarray(values, jnp.float32), leaf.scheme, leaf.axis)
            past |= {name: np.asarray(made.codes), f"{name}.scales": np.asarray(made.scales)}
        else:
            past[name] = values
    return past


def replaced(plan: Plan, part: str, **changes: Any) -> Plan:
    """A plan with another value in one of its parts."""
    return replace(plan, **{part: replace(getattr(plan, part), **changes)})
