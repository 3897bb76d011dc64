"""One block after another under several plans, each beside the float32 reference.

Weights are made once per block, every plan runs on them, then they are dropped; of a mixture only
the experts that some token chooses are made. Not here: which blocks run, the two ends of a model
(`embedding_and_head`), and what is reported.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32

from lpu_jax.machine.mixed import Machine
from models.blocks import CACHING_KINDS, Block
from models.config import ModelConfig
from models.param_spec import ParamSpec
from models.params import Kind, block_params, expert_params
from models.policy import Policy
from models.reference import advanced, reference_block
from models.weights.source import WeightSource
from models.weights.stored import one_of_batch

from ..axes import allocated_positions
from ..plan import Plan
from ..request import Request
from ..run.execute import Relay, program_key, run_attention, run_block, with_inputs
from ..run.load import (
    LoadedBlock,
    StoredBlock,
    place_block,
    store_block,
    store_expert,
    stored_values,
    widened,
)
from ..run.measures import finite, sqnr_db
from .experts import ExpertStore, made_ahead
from .routing import MixtureReference, RoutingCheck, count_flips, emulated_routes, joined_key

#: Tokens pass a mixture together while the experts that they may choose take no more than this.
_STORE_BYTES = 1 << 31
#: The next block's weights are made beside a block while both have no more values than this.
_VALUES_AT_ONCE = 1 << 28
#: Plans compiled and run side by side, and weights made meanwhile.
_WORKERS = 2


@dataclass(frozen=True, kw_only=True)
class BlockCheck:
    """Errors after one block. In dB: signal over noise, both summed over all tokens and columns."""

    kind: Kind
    layer: int
    sqnr_db: float  #: of the hidden state after the block
    change_sqnr_db: float  #: of what the block added to the hidden state
    max_abs_err: float
    routing: RoutingCheck | None = None  #: of mixtures

    def as_dict(self) -> dict[str, Any]:
        """The errors as plain values for JSON; an infinite number is None."""
        values = asdict(self) | {
            "sqnr_db": finite(self.sqnr_db),
            "change_sqnr_db": finite(self.change_sqnr_db),
            "max_abs_err": finite(self.max_abs_err),
        }
        if self.routing is not None:
            values["routing"]["margin"] = finite(self.routing.margin)
        return values


@dataclass(kw_only=True)
class Run:
    """A plan's hidden states, emulated and in the reference, after the blocks so far."""

    plan: Plan
    hidden: Float[np.ndarray, "tokens d"]  #: in the policy's base format
    reference: Float32[np.ndarray, "tokens d"]
    #: names the experts that the reference used so far: plans that agree share their reference
    routes: str = ""
    checks: list[BlockCheck] = field(default_factory=list)
    #: where each token attends on the chips, and in the reference (None: to all), for layers that
    #: attend where another does
    relays: list[Relay] = field(default_factory=list)
    seen: Bool[np.ndarray, "tokens tokens"] | None = None

    def advance(
        self,
        kind: Kind,
        layer: int,
        hidden: Float[np.ndarray, "tokens d"],
        reference: Float32[np.ndarray, "tokens d"],
        routing: RoutingCheck | None = None,
    ) -> None:
        """Note the errors of a block and move past it."""
        with np.errstate(invalid="ignore"):  # infinity minus infinity: fp16 overflowed
            change = hidden.astype(np.float32) - self.hidden.astype(np.float32)
        self.checks.append(
            BlockCheck(
                kind=kind,
                layer=layer,
                sqnr_db=sqnr_db(reference, hidden),
                change_sqnr_db=sqnr_db(reference - self.reference, change),
                max_abs_err=float(np.max(np.abs(reference - hidden.astype(np.float32)))),
                routing=routing,
            )
        )
        self.hidden, self.reference = hidden, reference


def run_steps(
    steps: Sequence["Step"],
    runs: Sequence[Run],
    *,
    starting: Callable[["Step"], None] = lambda _: None,
    finished: Callable[["Step"], None] = lambda _: None,
) -> None:
    """Move plans past blocks, one after another.

    The next block's weights are made meanwhile, as long as both are small.

    Args:
        steps: the blocks.
        runs: the plans; they are changed.
        starting: told which block begins.
        finished: told which block is done.
    """
    ahead: dict[Step, Any] = {}
    with ThreadPoolExecutor(_WORKERS) as workers:
        for i, step in enumerate(steps):
            following = steps[i + 1] if i + 1 < len(steps) else None
            starting(step)
            stored = ahead.pop(step).result() if step in ahead else step.store()
            if following is not None and step.n_values + following.n_values <= _VALUES_AT_ONCE:
                ahead[following] = workers.submit(following.store)
            step.run(runs, stored, workers)
            del stored
            finished(step)


class Step:
    """One block: its weights are made once, every plan runs on them, then they are dropped."""

    def __init__(
        self,
        source: WeightSource,
        system: Machine,
        block: Block,
        *,
        policy: Policy,
        execution: str = "virtual",
        routing: str = "forced",
    ) -> None:
        self.source, self.system, self.policy = source, system, policy
        self.kind, self.layer = block.kind, block.layer
        self.cfg: ModelConfig = source.config
        self.execution, self.routing = execution, routing
        self.specs = block_params(self.cfg, self.kind)

    @property
    def n_values(self) -> int:
        """Values that `store` makes."""
        return sum(
            spec.n_values
            for spec in self.specs.values()
            if self.kind != "moe" or spec.role != "expert"
        )

    def store(self) -> StoredBlock:
        """Make the block's weights; of a mixture everything but the routed experts."""
        held = () if self.kind == "moe" else None
        return store_block(self.source, self.kind, self.layer, self.policy, held_experts=held)

    def run(self, runs: Sequence[Run], stored: StoredBlock, workers: Executor) -> None:
        """Move every plan past the block."""
        if self.kind == "moe":
            self._run_mixture(runs, stored, workers)
            return
        references = self._references(runs, self._values(stored))
        states = [run.hidden for run in runs]
        outputs = self._emulate_all(runs, states, self._wide(stored), workers)
        for run, output, reference in zip(runs, outputs, references, strict=True):
            run.advance(self.kind, self.layer, output, reference)

    def _emulate_all(
        self,
        runs: Sequence[Run],
        states: Sequence[Float[np.ndarray, "tokens d"]],
        stored: StoredBlock,
        workers: Executor,
    ) -> list[Float[np.ndarray, "tokens d"]]:
        """Run the plans side by side, as compiling takes longest; those of one program in turn."""
        groups: dict[Any, list[int]] = {}
        for i, run in enumerate(runs):
            groups.setdefault(program_key(self.cfg, self.kind, run.plan), []).append(i)

        def emulate(group: list[int]) -> dict[int, Float[np.ndarray, "tokens d"]]:
            outputs = {}
            for i in group:
                plan = runs[i].plan
                request = Request(batch=1, tokens=1, context=allocated_positions(plan))
                block = place_block(stored, self.system, plan, request)
                runs[i].relays = runs[i].relays or [Relay() for _ in states[i]]
                outputs[i] = self._emulate(states[i], block, runs[i].relays)
            return outputs

        done: dict[int, Any] = {}
        for outputs in workers.map(emulate, groups.values()):
            done |= outputs
        return [done[i] for i in range(len(runs))]

    def _values(self, stored: StoredBlock) -> dict[str, Float32[np.ndarray, "..."]]:
        return {
            name: stored_values(weight, self.specs[name]) for name, weight in stored.weights.items()
        }

    def _wide(self, stored: StoredBlock) -> StoredBlock:
        """Widen narrow weights once, and hand them to JAX once, for all plans."""
        weights = {
            name: jax.tree.map(jnp.asarray, widened(weight, self.specs[name]))
            for name, weight in stored.weights.items()
        }
        return replace(stored, weights=weights)

    def _emulate(
        self,
        state: Float[np.ndarray, "tokens d"],
        block: LoadedBlock,
        relays: Sequence[Relay],
    ) -> Float[np.ndarray, "tokens d"]:
        """Decode the tokens one after another."""
        rows = []
        has_cache = self.kind in CACHING_KINDS
        cache = block.arguments[2] if has_cache else None
        for position, row in enumerate(state):
            hidden = row.reshape(1, 1, -1)
            if has_cache:
                start = np.full(1, position, np.int32)
                out, cache = run_attention(
                    self.cfg,
                    block,
                    hidden,
                    cache,
                    start,
                    relay=relays[position],
                    execution=self.execution,
                )
            else:
                out = run_block(self.cfg, with_inputs(block, hidden), execution=self.execution)
            rows.append(np.asarray(out)[0, 0])
        return np.stack(rows)

    def _references(
        self, runs: Sequence[Run], values: dict[str, Float32[np.ndarray, "..."]]
    ) -> list[Float32[np.ndarray, "tokens d"]]:
        """Run the reference once for all plans whose tokens took the same experts so far."""
        module = reference_block(self.cfg, self.kind, values)
        known: dict[str, tuple[Any, Any]] = {}
        for run in runs:
            if run.routes not in known:
                seen = None if run.seen is None else jnp.asarray(run.seen)[None]
                found, told = advanced(module, jnp.asarray(run.reference)[None], seen)
                known[run.routes] = (
                    np.asarray(found[0]),
                    None if told is None else np.asarray(told[0]),
                )
            run.seen = known[run.routes][1]
        return [known[run.routes][0] for run in runs]

    # mixture of experts: route first, then make only the experts in use

    def _run_mixture(self, runs: Sequence[Run], stored: StoredBlock, workers: Executor) -> None:
        """Send the tokens through in parts whose experts fit into memory together."""
        values, wide = self._values(stored), self._wide(stored)
        size = self._tokens_at_once(len(runs[0].hidden))
        parts = [
            self._run_part(runs, slice(first, first + size), size, values, wide, workers)
            for first in range(0, len(runs[0].hidden), size)
        ]
        for run, *passed in zip(runs, *parts, strict=True):
            run.routes = joined_key(run.routes, np.concatenate([part.used for part in passed]))
            run.advance(
                "moe",
                self.layer,
                np.concatenate([part.hidden for part in passed]),
                np.concatenate([part.reference for part in passed]),
                RoutingCheck(
                    choices=sum(part.used.size for part in passed),
                    flips=sum(part.flips for part in passed),
                    margin=min(part.margin for part in passed),
                ),
            )

    def _tokens_at_once(self, n_tokens: int) -> int:
        moe = self.cfg.moe
        assert moe is not None
        expert_values = sum(spec.n_values for spec in self._expert_specs().values())
        expert_bytes = expert_values * self.policy.base_bits // 8
        return min(n_tokens, max(1, _STORE_BYTES // (moe.top_k * expert_bytes)))

    def _run_part(
        self,
        runs: Sequence[Run],
        part: slice,
        size: int,
        values: dict[str, Float32[np.ndarray, "..."]],
        wide: StoredBlock,
        workers: Executor,
    ) -> list["_Passed"]:
        """Send some tokens through: at most `size`, so that all parts share their programs."""
        moe = self.cfg.moe
        assert moe is not None
        reference = MixtureReference(self.cfg, values)
        states = [run.hidden[part] for run in runs]
        taken = [emulated_routes(wide.weights, h, self.cfg, self.policy) for h in states]
        used, flips, margins, keys = [], [], [], []
        for run, ids in zip(runs, taken, strict=True):
            own = reference.own_routes(run.reference[part])
            used.append(ids if self.routing == "forced" else own)
            flips.append(count_flips(own, ids))
            margins.append(reference.margin(run.reference[part]))
            keys.append(joined_key(run.routes, used[-1]))
            reference.begin(keys[-1], run.reference[part], used[-1])
        held = sorted({int(i) for ids in taken for i in ids.reshape(-1)})
        store = ExpertStore(max(len(held), min(moe.n_experts, size * moe.top_k)))
        needed = reference.needed
        make = partial(self._make_expert, of_reference=needed)
        numbers = sorted({*held, *needed})
        for number, (wide_expert, its_values) in zip(
            numbers, made_ahead(make, numbers, workers), strict=True
        ):
            if number in needed:
                reference.add(number, its_values)
            if number in held:
                store.add(wide_expert)
        placed = replace(wide, weights={**wide.weights, **store.handed_over()}, held=tuple(held))
        outputs = self._emulate_all(runs, states, placed, workers)
        return [
            _Passed(
                hidden=output,
                reference=reference.total(key),
                used=ids,
                flips=n_flips,
                margin=margin,
            )
            for output, key, ids, n_flips, margin in zip(
                outputs, keys, used, flips, margins, strict=True
            )
        ]

    def _make_expert(
        self, number: int, of_reference: set[int]
    ) -> tuple[dict[str, Any], dict[str, Float32[np.ndarray, "..."]]]:
        """Make one expert as the store holds it, and its values if the reference needs them."""
        stored = store_expert(self.source, self.layer, number, self.policy)
        specs = self._expert_specs()
        values = {
            name: stored_values(stored[name], spec)
            for name, spec in specs.items()
            if number in of_reference
        }
        return {name: widened(stored[name], spec) for name, spec in specs.items()}, values

    def _expert_specs(self) -> dict[str, ParamSpec]:
        """One expert's parameters."""
        moe = self.cfg.moe
        assert moe is not None
        return {
            name: one_of_batch(spec) for name, spec in expert_params(self.cfg.d_model, moe).items()
        }


@dataclass(frozen=True, kw_only=True)
class _Passed:
    """Some tokens after a mixture."""

    hidden: Float[np.ndarray, "tokens d"]
    reference: Float32[np.ndarray, "tokens d"]
    used: Any  #: experts that the reference used
    flips: int
    margin: float
