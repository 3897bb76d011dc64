"""What plans are judged on: a model, on a machine, asked for something, in given formats."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Num

from lpu_jax.arguments import check_fields, described
from lpu_jax.errors import LpuError
from lpu_jax.machine.catalogue import any_system
from lpu_jax.machine.catalogue import system as named_system
from lpu_jax.machine.gpu import GpuSpec
from lpu_jax.machine.mixed import Machine, MixedSystem, Split
from lpu_jax.machine.system import System
from lpu_jax.predicates import is_number
from models.blocks import BLOCK_KINDS, Kind, block_kinds
from models.config import ModelConfig
from models.params import block_params
from models.policy import FP16, Policy, on_tensor_cores, policy_named
from models.weights.source import WeightSource
from models.zoo import model as named_model

from .plan import FFN_PARTS, Plan, check_is_plan
from .request import NEXT_TOKEN, Request, check_drafts, check_request


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A model that drafts tokens for another, on chips of its own beside those of that one."""

    model: ModelConfig
    policy: Policy
    plan: Plan | None = None  #: None: the fastest that fits on the chips left

    def __post_init__(self) -> None:
        """Refuse fields of other types.

        Raises:
            LpuError: says which; `scenario` finds what is named.
        """
        check_fields(self)


@dataclass(frozen=True)
class Scenario:
    """A model on a machine with a request; plans are compared on equal scenarios."""

    model: ModelConfig
    system: System
    request: Request
    policy: Policy = field(default=FP16, kw_only=True)  #: formats of weights, rows, cache, wire
    #: how often each expert is chosen, in any unit; None: all alike
    expert_shares: tuple[float, ...] | None = field(default=None, kw_only=True)
    #: who drafts; None: drafts, if any, cost nothing
    draft: Draft | None = field(default=None, kw_only=True)
    #: what the system is a part of; None: all on the system
    mixed: MixedSystem | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse fields of other types.

        Raises:
            LpuError: says which; `scenario` finds what is named.
        """
        check_fields(self)
        if self.mixed is not None and _main_machine(self.mixed) != self.system:
            raise LpuError(
                f"the system is {self.system.name}; of {self.mixed.name} it must be "
                f"{_main_machine(self.mixed).name}."
            )
        if self.expert_shares is not None:
            _check_shares(self.expert_shares, self.model)
            if self.system.lpus is None:
                raise LpuError(
                    f"expert_shares were given for {self.system.name}; rows of GPUs choose experts "
                    "at random, all alike."
                )

    @property
    def crosses(self) -> bool:
        """Whether the hidden state crosses between two machines, before and after each FFN."""
        return self.mixed is not None and self.mixed.split is Split.ATTENTION_FFN

    @cached_property
    def pools(self) -> "tuple[Scenario, Scenario]":
        """What each pool of a plan of two is judged on: attention's, and that of FFNs.

        They are on one machine, or attention's on GPUs whose cycles are those of the LPUs beside.
        """
        if not self.crosses or self.mixed is None:
            return self, self
        gpus, clock_hz = self.mixed.gpus, float(self.system.chip.clock_hz)
        assert isinstance(gpus.chip, GpuSpec)  # a mixed system has GPUs there
        gpus = replace(gpus, chip=replace(gpus.chip, clock_hz=clock_hz))
        alone = replace(self, mixed=None, draft=None)
        return replace(alone, system=gpus, expert_shares=None), alone

    @property
    def machine(self) -> Machine:
        """All that plans may use: the system, or the mixed system that it is a part of."""
        return self.system if self.mixed is None else self.mixed

    def on(self, machine: Machine) -> "Scenario":
        """Ask the same of another machine."""
        if isinstance(machine, MixedSystem):
            return replace(self, system=_main_machine(machine), mixed=machine)
        return replace(self, system=machine, mixed=None)

    @property
    def host_cycles(self) -> float:
        """Host and sampling in every latency: of the machine of the head."""
        system = self.pools[0].system
        return float(system.host_overhead_s * float(system.chip.clock_hz))

    @property
    def draft_step(self) -> "Scenario":
        """What the draft model is asked to do for one draft: the next token of every sequence."""
        assert self.draft is not None  # asked for where there is one
        request = replace(self.request, tokens=1, acceptance=None)
        return Scenario(self.draft.model, self.draft_system, request, policy=self.draft.policy)

    @property
    def draft_system(self) -> System:
        """Where the draft model is: beside the model, or on the LPUs beside the model's GPUs."""
        return self.system if self.mixed is None else self.mixed.lpus


def scenario(
    model: str | Path | ModelConfig,
    system: str | Path | Machine,
    request: Request = NEXT_TOKEN,
    *,
    policy: str | Policy = "fp16",
    expert_shares: Sequence[float] | Num[np.ndarray, " experts"] | None = None,
    draft_model: str | Path | ModelConfig | None = None,
    draft_plan: Plan | None = None,
) -> Scenario:
    """Find what is named and check the request: the entrance of every public function.

    Args:
        model: a zoo name, the path of a `config.json`, or a configuration.
        system: a system's name, the path of a TOML file, or a system; a mixed one has the model's
            attention on its GPUs, unless its name chooses another split.
        request: what the model is asked to do at once.
        policy: name of a precision policy, or a policy.
        expert_shares: how often each expert of a mixture is chosen, in any unit: a histogram of
            the user's routing. None: all alike.
        draft_model: the model that drafts, as `model`; None: drafts, if any, cost nothing.
        draft_plan: its plan; None: the fastest that fits on the chips left.

    Raises:
        LpuError: an unknown name, an impossible number, a histogram that does not fit the model,
            or a value of another type: one sentence.
    """
    cfg = model_of(model)
    machine = machine_of(system)
    if not isinstance(request, Request):
        raise LpuError(
            f"request is {described(request)}; it must be a Request, such as Request(batch=1, "
            "context=4096)."
        )
    formats = policy_of(policy, cfg)
    check_request(request, cfg)
    shares = None if expert_shares is None else _histogram(expert_shares)
    main = _main_machine(machine) if isinstance(machine, MixedSystem) else machine
    asked = Scenario(cfg, main, request, policy=formats, expert_shares=shares).on(machine)
    if draft_model is not None:
        return _with_draft(asked, draft_model, policy, draft_plan)
    if draft_plan is not None:
        raise LpuError("a draft plan was given without a draft model; give both.")
    if asked.mixed is not None and asked.mixed.split is Split.DRAFT_VERIFY:
        raise LpuError(
            f"{machine.name} needs a draft model, which drafts on its LPUs, and draft tokens with "
            "their acceptance."
        )
    return asked


def _with_draft(
    asked: Scenario, model: str | Path | ModelConfig, policy: str | Policy, plan: Plan | None
) -> Scenario:
    """Find who drafts, and check that it can.

    Raises:
        LpuError: an unknown name, something that is no plan, or as `_check_draft`.
    """
    if asked.mixed is not None and asked.mixed.split is not Split.DRAFT_VERIFY:
        raise LpuError(
            f"a draft model was given for {asked.mixed.name}; it drafts in the split "
            f"{Split.DRAFT_VERIFY}."
        )
    cfg = model if isinstance(model, ModelConfig) else named_model(_name("draft model", model))
    if plan is not None:
        check_is_plan("draft plan", plan)
    draft = Draft(model=cfg, policy=policy_of(policy, cfg), plan=plan)
    asked = replace(asked, draft=draft)
    _check_draft(draft, asked)
    return asked


def _check_draft(draft: Draft, asked: Scenario) -> None:
    """Refuse a draft model that cannot draft for a model.

    Raises:
        LpuError: nothing is to be drafted, its tokens are others, its context is too short, it
            has recurrent layers, or no chip is left.
    """
    name, cfg, request = draft.model.name, asked.model, asked.request
    if request.acceptance is None:
        raise LpuError(
            f"draft model {name} was given without draft tokens; speculative decoding needs both."
        )
    if request.tokens < 2:
        raise LpuError(f"draft tokens is 0; draft model {name} needs at least 1 to draft.")
    if draft.model.vocab_size != cfg.vocab_size:
        raise LpuError(
            f"draft model {name} has a vocabulary of {draft.model.vocab_size} tokens, {cfg.name} "
            f"one of {cfg.vocab_size}; drafts must be tokens of the model."
        )
    if asked.mixed is None and asked.system.n_chips < 2:
        raise LpuError(f"{asked.system.name} has one chip; draft model {name} needs its own.")
    check_drafts(draft.model)
    check_request(asked.draft_step.request, draft.model)


def _main_machine(mixed: MixedSystem) -> System:
    """The machine of the plan: of the LPUs, but for drafts, which the GPUs verify."""
    return mixed.gpus if mixed.split is Split.DRAFT_VERIFY else mixed.lpus


def model_of(given: str | Path | ModelConfig) -> ModelConfig:
    """Return a model, found if it is named.

    Raises:
        LpuError: an unknown name, a file that cannot be read, or something that is no model.
    """
    return given if isinstance(given, ModelConfig) else named_model(_name("model", given))


def machine_of(given: str | Path | Machine) -> Machine:
    """Return a system or a mixed system, found if it is named.

    Raises:
        LpuError: an unknown name, or something that is no system.
    """
    return given if isinstance(given, Machine) else any_system(_name("system", given))


def system_of_kind(machine: Machine, kind: Kind) -> System:
    """Return the machine that has the blocks of a kind; of a mixed one, GPUs have attention."""
    if isinstance(machine, System):
        return machine
    return machine.lpus if BLOCK_KINDS[kind].part in FFN_PARTS else machine.gpus


def require_one_schedule(machine: Machine, caller: str) -> None:
    """Raise unless a step is one program, on one machine or crossing between two.

    Raises:
        LpuError: it is a split in which two machines have plans of their own.
    """
    if isinstance(machine, MixedSystem) and machine.split is not Split.ATTENTION_FFN:
        raise LpuError(
            f"{caller}: the machines of {machine.name} have plans of their own; give one of them, "
            f"{machine.gpus.name} or {machine.lpus.name}, or the split {Split.ATTENTION_FFN}."
        )


def require_values(machine: Machine, caller: str) -> None:
    """Raise unless a machine computes values: LPUs do, and GPUs beside them.

    Raises:
        LpuError: GPUs alone, or a split in which one machine does all that is emulated.
    """
    if isinstance(machine, System):
        machine.require_lpu(caller)
    elif machine.split is not Split.ATTENTION_FFN:
        raise LpuError(
            f"{caller}: values of {machine.name} are those of one of its machines alone; give "
            f"{machine.lpus.name}, or the split {Split.ATTENTION_FFN}."
        )


def policy_of_values(policy: Policy, machine: Machine) -> Policy:
    """Have GPUs beside LPUs multiply by a model of their tensor cores, unless a policy says whose.

    Raises:
        LpuError: rows or weights of formats that these do not take.
    """
    if isinstance(machine, System) or policy.tensor_cores or policy.base == "fp32":
        return policy
    assert isinstance(machine.gpus.chip, GpuSpec)  # as a mixed system has
    return on_tensor_cores(policy, f"{machine.gpus.chip.tensor_cores}:attention")


def splits_of(machines: Sequence[Machine], *, drafts: bool) -> list[Machine]:
    """Take a mixed system in each of its splits, and every other system as it is.

    Args:
        machines: systems; mixed ones whose split was chosen keep it.
        drafts: whether there is a draft model, which drafts on the LPUs.
    """
    found: list[Machine] = []
    for machine in machines:
        if isinstance(machine, MixedSystem) and not machine.is_chosen:
            splits = [Split.DRAFT_VERIFY] if drafts else [Split.ATTENTION_FFN, Split.PREFILL_DECODE]
            found += [machine.split_as(split) for split in splits]
        else:
            found.append(machine)
    return found


def system_of(given: str | Path | System) -> System:
    """Return a system, found if it is named.

    Raises:
        LpuError: an unknown name, or something that is no system.
    """
    return given if isinstance(given, System) else named_system(_name("system", given))


def policy_of(given: str | Policy, cfg: ModelConfig) -> Policy:
    """Return a policy for a model, found if it is named.

    Raises:
        LpuError: an unknown name, or something that is no policy.
    """
    if isinstance(given, Policy):
        return given
    if not isinstance(given, str):
        raise LpuError(f"policy is {described(given)}; it must be a name or a Policy.")
    return policy_named(given, cfg)


def source_config(source: WeightSource) -> ModelConfig:
    """Return the model of a source of weights.

    Raises:
        LpuError: it is no source of weights.
    """
    cfg = getattr(source, "config", None)
    if not isinstance(cfg, ModelConfig) or not callable(getattr(source, "block", None)):
        raise LpuError(
            f"source is {described(source)}; it must be weights, such as "
            "open_checkpoint(path).weights or SyntheticWeights(model)."
        )
    return cfg


def _histogram(given: object) -> tuple[float, ...]:
    """Return how often experts are chosen as plain numbers.

    Raises:
        LpuError: it is not a list of numbers.
    """
    values = given.tolist() if isinstance(given, np.ndarray) else given
    if not isinstance(values, list | tuple) or not all(map(is_number, values)):
        raise LpuError(
            f"expert_shares is {described(given)}; it must be a list of numbers, one per expert."
        )
    return tuple(map(float, values))


def _check_shares(shares: tuple[float, ...], cfg: ModelConfig) -> None:
    """Refuse a histogram of routing that no rows of a model can have.

    Raises:
        LpuError: says what was given, and what is allowed.
    """
    if cfg.moe is None:
        raise LpuError(f"expert_shares were given; {cfg.name} has no experts.")
    n, total = cfg.moe.n_experts, sum(shares)
    if len(shares) != n:
        raise LpuError(f"expert_shares has {len(shares)} numbers; {cfg.name} has {n} experts.")
    if not all(0 <= share < math.inf for share in shares) or not 0 < total < math.inf:
        raise LpuError(
            "expert_shares must be numbers of at least 0 with a finite sum, not all of them 0."
        )
    most = max(shares)
    if cfg.moe.top_k * most > total * (1 + 1e-9):
        raise LpuError(
            f"expert_shares gives expert {shares.index(most)} a share of {most / total:.3g} of all "
            f"choices; a row chooses {cfg.moe.top_k} experts, each at most once, so it must be at "
            f"most 1/{cfg.moe.top_k}."
        )


def _name(what: str, given: object) -> str | Path:
    """Return a name or a path.

    Raises:
        LpuError: it is neither.
    """
    if not isinstance(given, str | Path):
        raise LpuError(f"{what} is {described(given)}; it must be a name, a path, or a {what}.")
    return given


def check_policy(policy: Policy, cfg: ModelConfig, system: System) -> None:
    """Refuse a policy that the model's shapes or the chip cannot take, or that is not about it.

    Raises:
        LpuError: as `check_formats`, or the policy stores nothing of this model otherwise than
            fp16 does.
    """
    check_formats(policy, cfg, system)
    roles = {spec.role for kind in block_kinds(cfg) for spec in block_params(cfg, kind).values()}
    if policy.roles and not roles & policy.roles:
        raise LpuError(
            f"policy {policy.name} is about {' and '.join(sorted(policy.roles))} weights, "
            f"which {cfg.name} has none of; use another format, such as fp16."
        )


def check_formats(policy: Policy, cfg: ModelConfig, system: System) -> None:
    """Refuse a policy that the model's shapes or the chip cannot take.

    A draft model may have nothing that the policy is about; all of it is then held as fp16.

    Raises:
        LpuError: no chip runs it, heads are cut by groups that share a scale, or the chip has no
            such operands.
    """
    if policy.base != "fp16":
        raise LpuError(
            f"policy {policy.name} is for checking only: no chip multiplies {policy.base}."
        )
    if any(scheme.multiplies_bare for scheme in policy.weights.values()):
        system.chip.check_operand("int8")
    if any(
        rows == "fp8" and role in policy.weights and policy.weights[role].multiplies_in_blocks
        for role, rows in policy.rows.items()
    ):
        system.chip.check_operand("fp8")
    attends = [kind for kind in block_kinds(cfg) if BLOCK_KINDS[kind].part == "attention"]
    for kind, spec in ((one, spec) for one in attends for spec in block_params(cfg, one).values()):
        scheme = policy.scheme(spec)
        if scheme is None or spec.rows < 2:
            continue
        width = spec.shape[spec.batch + spec.rows - 1]
        if width % scheme.row_granule:
            head = "recurrent head width" if BLOCK_KINDS[kind].is_recurrent else "head width"
            raise LpuError(
                f"policy {policy.name} shares a scale between {scheme.row_granule} rows, "
                f"which does not divide the {head} {width} of {cfg.name}."
            )
