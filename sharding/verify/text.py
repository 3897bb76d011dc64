"""How well a model on the chips of a plan predicts a text, beside the float32 model.

Perplexity of both, the divergence between their predictions, and how often they prefer the same
token, under several policies over the same tokens. Nothing is generated here, and no time of a chip
is predicted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Float64, Int

from lpu_jax.errors import PlanError
from lpu_jax.machine.mixed import Machine
from models.config import ModelConfig
from models.param_spec import ParamSpec
from models.params import block_params
from models.policy import Policy
from models.reference import stream
from models.weights.source import WeightSource
from models.weights.stored import one_of_batch

from .. import report
from ..axes import allocated_positions
from ..legal import check_plan
from ..plan import Plan
from ..report import Watcher, check_watcher, versions
from ..request import Request
from ..run.forward import forward
from ..run.load import store_weight, stored_values
from ..run.measures import _exp, compare_predictions, decibels, finite, log_probabilities
from ..scenario import policy_of_values, require_values, scenario

#: Rows of logits that are compared at once: in float64 they are twice as wide as they came.
_ROWS = 64


#: Log-probabilities that differ by more are counted (`Gap.share`), in nats.
FAR_NATS = 1e-2


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How far two rows are apart in the log-probability of each next token: trained, then served.

    In nats, of the absolute difference.
    """

    mean: float
    largest: float
    share: float  #: of predictions that differ by more than `FAR_NATS`


@dataclass(frozen=True, kw_only=True)
class TextCheck:
    """Predictions of a text under one policy, over all positions that have a next token."""

    policy: Policy
    plan: Plan
    n_tokens: int  #: of the text
    n_scored: int  #: predictions: one less than the tokens of each window
    perplexity: float  #: `exp` of the mean negative log-likelihood, on the chips
    reference_perplexity: float  #: of the float32 model with the unrounded weights
    kl_nats: float  #: mean over predictions of KL(reference || chips)
    weights_kl_nats: float  #: the same for a float32 model with the weights as they are stored
    top1_agreement: float  #: share of predictions with the same most likely token
    gap: "Gap | None"  #: to the first row of a check; None: it is the first
    sqnr_db: float  #: of the logits: the reference's power over that of the difference

    def as_dict(self) -> dict[str, Any]:
        """The result as plain values for JSON; what is not finite is None."""
        numbers = {
            name: finite(getattr(self, name))
            for name in (
                "perplexity",
                "reference_perplexity",
                "kl_nats",
                "weights_kl_nats",
                "top1_agreement",
                "sqnr_db",
            )
        }
        return {
            "policy": self.policy.name,
            "fidelity": self.policy.fidelity,
            "plan": self.plan.as_dict(),
            "tokens": self.n_tokens,
            "scored": self.n_scored,
            **numbers,
            "gap": None
            if self.gap is None
            else {name: finite(value) for name, value in vars(self.gap).items()},
        }


def compare_text(
    source: WeightSource,
    system: Machine,
    plans: Sequence[Plan],
    tokens: Sequence[int],
    *,
    policies: Sequence[Policy],
    window: int | None = None,
    execution: str = "virtual",
    progress: Watcher = lambda *_: None,
) -> list[TextCheck]:
    """Predict each token of a text from those before it, on the chips of plans and in float32.

    Args:
        source: weights; they are read once for the reference and once for every row.
        system: its node and rack sizes fix the order of sums across chips; a mixed one has
            attention, embedding and head on its GPUs (`forward`).
        plans: how blocks are split.
        tokens: of the text, at least 2.
        policies: formats; each is run under each plan.
        window: tokens that are seen together; by default as many as the model has positions. A
            longer text is cut into such windows, and the first token of each is not predicted.
        execution: as for `execute.run_block`.
        progress: called with the steps done, the steps in all and what comes next;
            a step is a pass over a window.

    Returns:
        One result for each plan and policy, policies innermost.

    Raises:
        LpuError: it is GPUs alone.
        PlanError: fewer than 2 tokens, a window of fewer than 2 or of more than the model's
            positions, a token the model does not have, or a plan that is not legal.

    Fidelity: that of each policy; the reference is float32 and order-dependent. Sums over the
        vocabulary and over positions are in float64.
    """
    require_values(system, "check --text")
    check_watcher("check --text", progress)
    cfg = source.config
    policies = [policy_of_values(policy, system) for policy in policies]
    windows = _windows(cfg, tokens, window)
    for plan in plans:
        for policy in policies:
            _check_legal(cfg, system, plan, policy, len(windows[0]))
    rows = [_Row(policy=policy, plan=plan) for plan in plans for policy in policies]
    passes = 1 + len(policies) + len(rows)
    for i, ids in enumerate(windows):
        at, n_steps = count(i * passes), len(windows) * passes
        part = f" (window {i + 1} of {len(windows)})" if len(windows) > 1 else ""
        progress(next(at), n_steps, f"float32 reference{part}")
        expected = _reference(source, ids)
        stored = {}
        for policy in policies:
            progress(next(at), n_steps, f"float32 with weights in {policy.name}{part}")
            stored[policy.name] = _reference(_Stored(source, policy), ids)
        for row in rows:
            progress(next(at), n_steps, f"{row.policy.name}{part}")
            logits = forward(
                source, system, row.plan, ids[None], policy=row.policy, execution=execution
            )
            row.add(expected, logits[0, :-1], stored[row.policy.name], ids[1:])
    return [row.result(len(tokens), rows[0]) for row in rows]


def _windows(
    cfg: ModelConfig, tokens: Sequence[int], window: int | None
) -> list[Int[np.ndarray, " t"]]:
    if len(tokens) < 2:
        raise PlanError(f"text: it has {len(tokens)} tokens; at least 2 are needed.")
    length = cfg.max_position if window is None else window
    if not 2 <= length <= cfg.max_position:
        raise PlanError(
            f"text: a window of {length} tokens was asked for; {cfg.name} takes 2 to "
            f"{cfg.max_position}."
        )
    beyond = [token for token in tokens if not 0 <= token < cfg.vocab_size]
    if beyond:
        raise PlanError(
            f"text: it has token {beyond[0]}; {cfg.name} has 0 to {cfg.vocab_size - 1}."
        )
    ids = np.asarray(tokens, np.int32)
    cut = [ids[i : i + length] for i in range(0, len(ids), length)]
    return [part for part in cut if len(part) > 1]


def _check_legal(
    cfg: ModelConfig, system: Machine, plan: Plan, policy: Policy, n_tokens: int
) -> None:
    """Refuse plans that do not exist; a policy that no chip runs takes as much room as fp16."""
    context = min(allocated_positions(plan, n_tokens), cfg.max_position)
    request = Request(batch=plan.attention.data, context=context)
    check_plan(plan, scenario(cfg, system, request, policy=policy.on_chip))


class _Stored:
    """A model's weights as a policy stores them: the reference then shows what storage alone does.

    Args:
        source: unrounded weights.
        policy: formats.
    """

    def __init__(self, source: WeightSource, policy: Policy) -> None:
        self.config = source.config
        self._source, self._policy = source, policy

    def block(self, kind: str, layer: int = 0) -> dict[str, np.ndarray]:
        """Return a block's stored values; see `WeightSource.block`."""
        return self._rounded(self._source.block(kind, layer), block_params(self.config, kind))

    def expert(self, layer: int, expert_id: int) -> dict[str, np.ndarray]:
        """Return an expert's stored values; see `WeightSource.expert`."""
        specs = block_params(self.config, "moe")
        values = self._source.expert(layer, expert_id)
        return self._rounded(values, {name: one_of_batch(specs[name]) for name in values})

    def _rounded(
        self, values: Mapping[str, Any], specs: Mapping[str, ParamSpec]
    ) -> dict[str, np.ndarray]:
        return {
            name: stored_values(store_weight(value, specs[name], self._policy), specs[name])
            for name, value in values.items()
        }


def _reference(
    source: WeightSource, ids: Int[np.ndarray, " t"]
) -> Float32[np.ndarray, "predictions vocab"]:
    """Logits of the float32 model where a next token is known."""
    return np.asarray(stream(source, jnp.asarray(ids[None])))[0, :-1]


@dataclass(kw_only=True)
class _Row:
    """Sums of one plan and policy over the predictions so far."""

    policy: Policy
    plan: Plan
    sums: dict[str, float] = field(default_factory=dict)
    #: of each next token, in float64
    log_probabilities: list[Float64[np.ndarray, " _t"]] = field(default_factory=list)

    def add(
        self,
        expected: Float32[np.ndarray, "t vocab"],
        logits: Float32[np.ndarray, "t vocab"],
        stored: Float32[np.ndarray, "t vocab"],
        following: Int[np.ndarray, " t"],
    ) -> None:
        """Add the predictions of a window: the reference's, the chips', and those of storage."""
        for i in range(0, len(expected), _ROWS):
            part = slice(i, i + _ROWS)
            sums = compare_predictions(expected[part], logits[part], following[part])
            alone = compare_predictions(expected[part], stored[part], following[part])
            sums["weights_kl"] = alone["kl"]
            self.sums = {name: self.sums.get(name, 0.0) + value for name, value in sums.items()}
            with np.errstate(invalid="ignore"):  # logits may have overflowed
                chosen = log_probabilities(logits[part].astype(np.float64))
            self.log_probabilities.append(chosen[np.arange(len(chosen)), following[part]])

    def gap_to(self, other: "_Row") -> Gap:
        """Compare the log-probabilities of next tokens with those of another row."""
        own, others = (np.concatenate(row.log_probabilities) for row in (self, other))
        apart = np.abs(own - others)
        return Gap(
            mean=float(apart.mean()),
            largest=float(apart.max()),
            share=float((apart > FAR_NATS).mean()),
        )

    def result(self, n_tokens: int, first: "_Row") -> TextCheck:
        """Turn the sums into means; gaps are those to the first row."""
        sums, count = self.sums, self.sums["predictions"]
        return TextCheck(
            policy=self.policy,
            plan=self.plan,
            n_tokens=n_tokens,
            n_scored=int(count),
            perplexity=_exp(sums["loss"] / count),
            reference_perplexity=_exp(sums["reference_loss"] / count),
            kl_nats=sums["kl"] / count,
            weights_kl_nats=sums["weights_kl"] / count,
            top1_agreement=sums["agreements"] / count,
            gap=None if first is self else self.gap_to(first),
            sqnr_db=decibels(sums["power"], sums["noise"]),
        )


def text_dict(
    cfg: ModelConfig, system: Machine, text: Path, results: Sequence[TextCheck]
) -> dict[str, Any]:
    """The results as plain values, for JSON."""
    return {
        "model": cfg.name,
        "system": system.name,
        "text": str(text),
        "versions": versions(),
        "results": [result.as_dict() for result in results],
    }


def text_report(cfg: ModelConfig, system: Machine, results: Sequence[TextCheck]) -> str:
    """The results as a table, and what was compared."""
    first = results[0]
    made = report.table(
        ("policy", "left"),
        ("plan", "left"),
        ("perplexity", "right"),
        ("KL, nats", "right"),
        ("weights alone", "right"),
        ("same token", "right"),
        ("SQNR, dB", "right"),
        *([("gap to the first row, nats", "right")] if len(results) > 1 else []),
    )
    for one in results:
        made.add_row(
            one.policy.name,
            one.plan.name,
            f"{one.perplexity:.3f}",
            f"{one.kl_nats:.1e}",
            f"{one.weights_kl_nats:.1e}",
            f"{one.top1_agreement:.1%}",
            f"{one.sqnr_db:.1f}",
            *([_gap_in_words(one.gap)] if len(results) > 1 else []),
        )
    fidelities = ", ".join(dict.fromkeys(one.policy.fidelity for one in results))
    return report.render(
        f"{cfg.name} on virtual chips of {system.name}: {first.n_scored} predictions of "
        f"{first.n_tokens} tokens, {fidelities} numerics",
        made,
        f"float32 reference with the unrounded weights: perplexity "
        f"{first.reference_perplexity:.3f}; KL(reference || chips), and KL(reference || the same "
        "float32 model with the weights as they are stored)",
        *(
            [
                "gap: mean and largest difference of the log-probability of a next token, and the "
                f"share of predictions where it is above {FAR_NATS:g}"
            ]
            if len(results) > 1
            else []
        ),
    )


def _gap_in_words(gap: Gap | None) -> str:
    return "-" if gap is None else f"{gap.mean:.1e}, {gap.largest:.1e}, {gap.share:.1%}"
