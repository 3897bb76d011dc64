"""A whole forward pass under plans and in float32: tokens to logits, one block in memory at a time.

Embedding, the chosen layers, final norm and head; tokens are decoded one after another. A trillion
parameters pass, of which only the experts that tokens choose are made. Not measured: the error of
the stored formats (the reference holds the same stored values), nor text (`text`).
"""

import hashlib
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Float32

from lpu_jax.arguments import described
from lpu_jax.errors import LpuError, PlanError, unknown
from lpu_jax.machine.mixed import Machine
from lpu_jax.machine.system import System
from lpu_jax.predicates import is_whole
from models.config import ModelConfig
from models.policy import Policy
from models.weights.source import WeightSource

from ..plan import Plan, check_are_plans
from ..report import Watcher, check_watcher, versions
from ..run.measures import compare_predictions, finite, sqnr_db
from ..scenario import (
    machine_of,
    policy_of,
    policy_of_values,
    require_values,
    source_config,
)
from .chosen_layers import blocks_of, check_layers, check_n_tokens, check_plans, rounding_moved
from .embedding_and_head import embed_tokens, run_head
from .emulate import BlockCheck, Run, Step, run_steps
from .resume import Sitting
from .routing import Routing


@dataclass(frozen=True, kw_only=True)
class WholeCheck:
    """How far a plan's logits are from those of a float32 model with the same stored weights."""

    plan: Plan
    policy: Policy
    routing: str  #: see `check_whole`
    token_ids: tuple[int, ...]
    layers: tuple[int, ...]
    blocks: tuple[BlockCheck, ...]
    kl_nats: float  #: mean over tokens of KL(reference || emulated)
    top1_agreement: float  #: share of tokens after which both prefer the same token
    logits_sqnr_db: float
    next_tokens: tuple[int, ...]  #: most likely after each token, emulated
    reference_next_tokens: tuple[int, ...]
    rounding_moved: tuple[str, ...]  #: see `verify.CheckResult`
    output_hash: str  #: SHA-256 of the logits' bits
    seconds: float  #: on this computer, in all sittings, all plans together
    peak_rss_bytes: int  #: of this process so far
    logits: Float32[np.ndarray, "tokens vocab"] = field(repr=False, compare=False)

    @property
    def fidelity(self) -> str:
        """How products were computed: "faithful" or "fast"."""
        return self.policy.fidelity

    @property
    def choices(self) -> int:
        """Experts chosen, over all tokens and layers."""
        return sum(block.routing.choices for block in self.blocks if block.routing)

    @property
    def flips(self) -> int:
        """Of them, those that the reference would make otherwise on its own state."""
        return sum(block.routing.flips for block in self.blocks if block.routing)

    def as_dict(self) -> dict[str, Any]:
        """The result as plain values for JSON, without the logits; what is not finite is None."""
        return {
            "plan": self.plan.as_dict(),
            "name": self.plan.name,
            "fidelity": self.fidelity,
            "routing": self.routing,
            "kl_nats": finite(self.kl_nats),
            "top1_agreement": self.top1_agreement,
            "logits_sqnr_db": finite(self.logits_sqnr_db),
            "choices": self.choices,
            "flips": self.flips,
            "next_tokens": list(self.next_tokens),
            "reference_next_tokens": list(self.reference_next_tokens),
            "rounding_moved": list(self.rounding_moved),
            "output_hash": self.output_hash,
            "seconds": self.seconds,
            "peak_rss_bytes": self.peak_rss_bytes,
            "blocks": [block.as_dict() for block in self.blocks],
        }


def check_whole(
    source: WeightSource,
    system: str | Path | Machine,
    plans: Sequence[Plan],
    *,
    policy: str | Policy,
    token_ids: Sequence[int],
    layers: Sequence[int] | None = None,
    routing: str = "forced",
    resume: str | Path | None = None,
    weights_name: str = "",
    execution: str = "virtual",
    progress: Watcher = lambda *_: None,
) -> list[WholeCheck]:
    """Run tokens through a model under several plans and compare the logits with float32 ones.

    Args:
        source: weights; they are read or made once for all plans.
        system: a system's name, the path of a TOML file, or a system; its node and rack sizes fix
            the order of sums across chips. A mixed one has attention, embedding and head on its
            GPUs, and multiplies there by a model of their tensor cores.
        plans: all are run on the same weights. Stages change no value.
        policy: name of a precision policy, or a policy.
        token_ids: a sequence from position 0 on.
        layers: run in this order, the others are left out; by default all.
        routing: "forced": the reference uses the experts that the emulated router chose, so that
            errors are those of arithmetic alone; "free": its own, so that they include flips.
        resume: the state goes to this file after every block; a run with the same arguments goes
            on from it and ends with the same bits.
        weights_name: identifies the weights to `resume`.
        execution: as for `execute.run_block`.
        progress: called with the steps done, the steps in all and what comes next;
            a step is a block.

    Returns:
        One result per plan.

    Raises:
        LpuError: it is GPUs alone; the `resume` file is damaged, from another run, or
            cannot be written.
        PlanError: no tokens or layers, or ones that the model does not have; an illegal plan.
        CostError: a plan names a collective that does not exist over its links.
        WeightsError: the source cannot give a block.

    Fidelity: that of `policy`, bit for bit if faithful; the reference is float32 and
        order-dependent. Divergence and agreement are computed in float64.
    """
    machine = machine_of(system)
    require_values(machine, "check")
    cfg = source_config(source)
    formats = policy_of_values(policy_of(policy, cfg), machine)
    check_are_plans("check", plans)
    check_watcher("check", progress)
    if resume is not None and not isinstance(resume, str | Path):
        raise LpuError(f"check: resume is {described(resume)}; it must be the path of a file.")
    if not isinstance(weights_name, str):
        raise LpuError(f"check: weights_name is {described(weights_name)}; it must be a string.")
    check_tokens(cfg, token_ids, plans)
    if routing not in get_args(Routing):
        raise unknown("routing", str(routing), get_args(Routing))
    chosen = check_layers(cfg, range(cfg.n_layers) if layers is None else layers)
    check_plans(cfg, machine, plans, policy=formats)
    blocks = blocks_of(cfg, chosen)
    n_steps = len(blocks) + 1
    identity = _identity(cfg, machine, plans, formats, token_ids, chosen) | {
        "weights": weights_name,
        "routing": routing,
    }

    def embedded() -> list[Run]:
        progress(0, n_steps, "embedding")
        return [
            embed_tokens(source, machine, plan, token_ids, policy=formats, execution=execution)
            for plan in plans
        ]

    sitting = Sitting(None if resume is None else Path(resume), identity, plans, embedded)
    run_steps(
        [
            Step(source, machine, block, policy=formats, execution=execution, routing=routing)
            for block in blocks[sitting.n_done :]
        ],
        sitting.runs,
        starting=lambda step: progress(
            sitting.n_done, n_steps, f"{step.kind} of layer {step.layer}"
        ),
        finished=lambda _: sitting.note_block(),
    )
    progress(len(blocks), n_steps, "head")
    made = run_head(source, machine, sitting.runs, policy=formats, execution=execution)
    progress(n_steps, n_steps, "done")
    kinds = [block.kind for block in blocks]
    return [
        WholeCheck(
            plan=run.plan,
            policy=formats,
            routing=routing,
            token_ids=tuple(int(token) for token in token_ids),
            layers=chosen,
            blocks=tuple(run.checks),
            rounding_moved=rounding_moved(
                cfg, machine, run.plan, kinds, policy=formats, n_tokens=len(token_ids)
            ),
            seconds=sitting.seconds,
            peak_rss_bytes=peak_rss_bytes(),
            **agreement(expected, logits),
        )
        for run, (expected, logits) in zip(sitting.runs, made, strict=True)
    ]


def _identity(
    cfg: ModelConfig,
    system: Machine,
    plans: Sequence[Plan],
    policy: Policy,
    token_ids: Sequence[int],
    layers: Sequence[int],
) -> dict[str, Any]:
    """What makes a run this one, as values for JSON; a state resumes in no other."""
    machines = [system] if isinstance(system, System) else list(system.pools.values())
    return {
        "model": hashlib.sha256(repr(replace(cfg, name="")).encode()).hexdigest(),
        "system": [system.name, *(tier for own in machines for tier in own.topology.tiers)],
        "plans": [plan.as_dict() for plan in plans],
        "policy": hashlib.sha256(repr(policy).encode()).hexdigest(),
        "fidelity": policy.fidelity,
        "tokens": [int(token) for token in token_ids],
        "layers": list(layers),
        "versions": versions(),
    }


def agreement(
    expected: Float32[np.ndarray, "tokens vocab"], logits: Float32[np.ndarray, "tokens vocab"]
) -> dict[str, Any]:
    """Compare the logits of the reference with the emulated ones."""
    best, reference_best = logits.argmax(-1), expected.argmax(-1)
    with np.errstate(invalid="ignore"):  # logits may have overflowed
        sums = compare_predictions(expected, logits, reference_best)
    kl_nats = sums["kl"] / len(logits)
    return {
        "kl_nats": 0.0 if kl_nats < 0 else kl_nats,  # roundings of equal rows may go below zero
        "top1_agreement": sums["agreements"] / len(logits),
        "logits_sqnr_db": sqnr_db(expected, logits),
        "next_tokens": tuple(int(token) for token in best),
        "reference_next_tokens": tuple(int(token) for token in reference_best),
        "output_hash": hashlib.sha256(logits.astype("<f4").tobytes()).hexdigest(),
        "logits": logits,
    }


def random_tokens(cfg: ModelConfig, n_tokens: int, seed: int) -> tuple[int, ...]:
    """Draw token ids from raw bits, so that no release of NumPy changes them."""
    draws = np.random.PCG64DXSM(seed).random_raw(n_tokens)
    return tuple(int(draw) % cfg.vocab_size for draw in draws)


def check_tokens(cfg: ModelConfig, token_ids: Sequence[int], plans: Sequence[Plan] = ()) -> None:
    """Refuse tokens that the model does not have, or too many or none of them.

    Without plans, too many are more than the cache of `fastest_plan` has room for.

    Raises:
        PlanError: says which.
    """
    if not isinstance(token_ids, Sequence | np.ndarray):
        raise PlanError(
            f"check: token_ids is {described(token_ids)}; it must be a list of token numbers."
        )
    check_n_tokens(len(token_ids), cfg, plans)
    for token in token_ids:
        if not (is_whole(token) and 0 <= token < cfg.vocab_size):
            raise PlanError(
                f"check: token {described(token)} was given; {cfg.name} has 0 to "
                f"{cfg.vocab_size - 1}."
            )


def peak_rss_bytes() -> int:
    """Return the most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
