"""One search over systems, policies and batch sizes: each combination compared, all in one rank.

Every combination is a task of its own, whose answer rests on nothing else. They may be worked off
here, on an executor, or by several runs that share a folder: the result is the same to the last
byte.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num

from lpu_jax.arguments import described
from lpu_jax.errors import LpuError
from lpu_jax.machine.mixed import Machine
from lpu_jax.predicates import is_whole
from models.config import ModelConfig
from models.policy import Policy

from ..plan import Plan
from ..report import Watcher, check_watcher, versions
from ..request import NEXT_TOKEN, Request, check_prompt, check_request
from ..scenario import machine_of, model_of, policy_of, scenario, splits_of
from ..search.goals import FRONTS
from .chip_figures import Figure, figures_by_system
from .contents import code_digest, digest_of, plain
from .limits import Limits
from .ranking import Objective
from .shards import Shards
from .sweep_result import Case, Sweep, SweepInterrupted
from .task import Answer, Task, answer, read_answer
from .wanted import Wanted, check_asked, check_count, check_min_chips
from .workers import check_executor, results

#: Rows of one case, where all of its front may be wanted.
_WHOLE_FRONT = 1 << 20
#: Characters of a hash that tell two things of one name apart.
_SHORT = 12


def sweep(
    model: str | Path | ModelConfig,
    systems: str | Path | Machine | Sequence[str | Path | Machine],
    request: Request = NEXT_TOKEN,
    *,
    policies: str | Policy | Sequence[str | Policy] = "fp16",
    batches: int | Sequence[int] = 1,
    draft_model: str | Path | ModelConfig | None = None,
    draft_plan: Plan | None = None,
    objective: Objective = "latency",
    prompt: int | None = None,
    top: int | None = None,
    per: int | None = None,
    expert_shares: Sequence[float] | Num[np.ndarray, " experts"] | None = None,
    invariant: str = "off",
    min_rate: float | None = None,
    max_first_token_s: float | None = None,
    min_chips: bool = False,
    chip_watts: Figure = None,
    chip_hour_cost: Figure = None,
    executor: Executor | None = None,
    shards: str | Path | None = None,
    shard: tuple[int, int] = (1, 1),
    progress: Watcher = lambda *_: None,
) -> Sweep:
    """Compare plans over systems, policies and batch sizes, each with each.

    Args:
        model: a zoo name, the path of a `config.json`, or a configuration.
        systems: one or more names, paths of TOML files, or systems.
        request: what a step does for a sequence; its batch is 1, since `batches` are tried.
        policies: one or more names of precision policies, or policies.
        batches: one or more numbers of sequences per micro-batch.
        draft_model: as for `compare`.
        draft_plan: as for `compare`.
        objective: as for `compare`; rows of all scenarios are ranked by it together, and a front
            is that of all of them.
        prompt: as for `compare`.
        top: how many rows to keep; None: all.
        per: how many rows a scenario may have; None: its best, or its part of the front.
        expert_shares: as for `compare`.
        invariant: as for `compare`.
        min_rate: as for `compare`.
        max_first_token_s: as for `compare`.
        min_chips: compare on the smallest part of each machine on which something fits.
        chip_watts: of a chip, for tokens/s per MW: of all systems, or by the name of a system, or
            of a machine of a mixed one.
        chip_hour_cost: of a chip, in any currency, for the cost of a million tokens: the same.
        executor: where scenarios are compared, any of `concurrent.futures`; None: here.
        shards: a folder that keeps the answer of each scenario, and from which those that are
            there are taken: a run that was stopped goes on.
        shard: `(i, n)`: do every n-th scenario, beginning with the i-th, from 1; other runs do the
            others in the same `shards`.
        progress: called with the scenarios done, all that this run does, and which was the last.

    Returns:
        The rows of all scenarios, ranked; while other runs have not done theirs, those there are.

    Raises:
        LpuError: an unknown name, an impossible number, a broken executor, another sweep's folder,
            or no scenario that could be asked: one sentence.
        SweepInterrupted: at Ctrl-C, with the result so far.

    Fidelity: approximate (docs/timing.md); in each scenario no plan of the space is better than
        the first row.
    """
    cfg = model_of(model)
    machines = splits_of(
        [machine_of(one) for one in _listed("systems", systems)], drafts=draft_model is not None
    )
    named = _listed("policies", policies)
    held = [policy_of(one, cfg) for one in named]
    sizes = _batches(batches, request, cfg)
    _check_apart("systems", [one.name for one in machines])
    _check_apart("policies", [one.name for one in held])
    check_min_chips(min_chips)
    for name, number in (("top", top), ("per", per)):
        if number is not None:
            check_count(name, number)
    check_executor(executor)
    check_watcher("sweep", progress)
    _check_shard(shard, shards)
    limits = Limits(
        min_rate=min_rate,
        max_first_token_s=max_first_token_s,
        prompt=check_prompt(prompt, request),
    )
    most = _WHOLE_FRONT if objective in FRONTS else per or 1
    wanted = Wanted(objective=objective, top=most, invariant=invariant, limits=limits)
    figures = figures_by_system(machines, chip_watts, chip_hour_cost)

    def asking(system: Machine, policy: str | Policy, batch: int) -> Task:
        asked = scenario(
            cfg,
            system,
            replace(request, batch=batch),
            policy=policy,
            expert_shares=expert_shares,
            draft_model=draft_model,
            draft_plan=draft_plan,
        )
        check_asked(asked, wanted)
        return Task(scenario=asked, wanted=wanted, min_chips=min_chips)

    cases, tasks = _cases(product(machines, zip(held, named, strict=True), sizes), asking)
    result = Sweep(
        model=cfg,
        request=request,
        draft_model=_draft_model(tasks),
        wanted=wanted,
        cases=tuple(cases),
        figures=figures,
        top=top,
        per=per if objective in FRONTS else most,
    )
    kept = None
    if shards is not None:
        digests = [task.digest for task in tasks.values()]
        kept = Shards(shards, _identity(result, tasks), digests)
    return _worked_off(result, tasks, kept, shard, executor, progress)


def _cases(
    combinations: Iterable[tuple[Machine, tuple[Policy, str | Policy], int]],
    asking: Callable[[Machine, str | Policy, int], Task],
) -> tuple[list[Case], dict[int, Task]]:
    """List the cases, and the tasks of those that can be asked by their numbers.

    Raises:
        LpuError: no case can be asked, for the reason of the first.
    """
    cases: list[Case] = []
    tasks: dict[int, Task] = {}
    problems: list[LpuError] = []
    for system, (held, named), batch in combinations:
        case = Case(system=system, policy=held, batch=batch)
        try:
            tasks[len(cases)] = asking(system, named, batch)
        except LpuError as problem:
            problems.append(problem)
            refused = Answer(
                system=system.name, policy=held.name, batch=batch, refused=str(problem)
            )
            case = replace(case, answer=refused)
        cases.append(case)
    if not tasks:
        raise problems[0]
    return cases, tasks


def _worked_off(
    result: Sweep,
    tasks: Mapping[int, Task],
    shards: Shards | None,
    shard: tuple[int, int],
    executor: Executor | None,
    progress: Watcher,
) -> Sweep:
    """Do the tasks that are this run's and not there yet; take what is there.

    Raises:
        SweepInterrupted: at Ctrl-C.
    """
    digests = {number: task.digest for number, task in tasks.items()}
    texts = {} if shards is None else shards.read()
    first, step = shard
    own = list(tasks)[first - 1 :: step]
    mine = [number for number in own if digests[number] not in texts]
    progress(0, len(mine), "sweep: the first cases")
    try:
        with closing(results(answer, [tasks[n] for n in mine], executor)) as arriving:
            for done, (at, text) in enumerate(arriving, 1):
                number = mine[at]
                texts[digests[number]] = text
                if shards is not None:
                    shards.write(digests[number], text)
                progress(done, len(mine), f"sweep: {result.cases[number].name}")
    except KeyboardInterrupt:
        raise SweepInterrupted(_with_answers(result, digests, texts)) from None
    if shards is not None:
        texts |= shards.read()  # what other runs have done meanwhile
    return _with_answers(result, digests, texts)


def _with_answers(result: Sweep, digests: Mapping[int, str], texts: Mapping[str, str]) -> Sweep:
    """Give cases the answers that are there."""
    cases = list(result.cases)
    for number, digest in digests.items():
        if digest in texts:
            cases[number] = replace(cases[number], answer=read_answer(texts[digest]))
    return replace(result, cases=tuple(cases))


def _identity(result: Sweep, tasks: Mapping[int, Task]) -> dict[str, Any]:
    """What makes a sweep this one, as values for JSON."""
    task = next(iter(tasks.values()))
    asked, wanted = task.scenario, task.wanted
    return {
        "model": _told(result.model),
        "systems": [_told(system) for system in result.systems],
        "policies": [_told(policy) for policy in result.policies],
        "batches": list(result.batches),
        "request": plain(result.request),
        "draft": None if asked.draft is None else _told(asked.draft.model),
        "draft_plan": None if asked.draft is None else plain(asked.draft.plan),
        "expert_shares": asked.expert_shares and digest_of(asked.expert_shares)[:_SHORT],
        "objective": wanted.objective,
        "rows": wanted.top,
        "invariant": wanted.invariant,
        **vars(wanted.limits),
        "min_chips": task.min_chips,
        "code": code_digest(),
        "versions": versions(),
    }


def _told(thing: ModelConfig | Machine | Policy) -> str:
    """A name, and a hash: there may be two of one name."""
    return f"{thing.name} {digest_of(plain(thing))[:_SHORT]}"


def _draft_model(tasks: Mapping[int, Task]) -> str | None:
    draft = next(iter(tasks.values())).scenario.draft
    return None if draft is None else draft.model.name


def _listed(name: str, given: object) -> list[Any]:
    """Take one thing for a list of one.

    Raises:
        LpuError: an empty list; what is wrong with its members is said where they are read.
    """
    listed = list(given) if isinstance(given, list | tuple | range) else [given]
    if not listed:
        raise LpuError(f"{name} is empty; at least one is needed.")
    return listed


def _check_apart(name: str, names: Sequence[str]) -> None:
    """Refuse two things of one name: nobody could tell their rows apart.

    Raises:
        LpuError: says which.
    """
    if len(set(names)) < len(names):
        raise LpuError(f"{name} are {', '.join(names)}; each may be given once.")


def _batches(given: object, request: Request, cfg: ModelConfig) -> list[int]:
    """Read batch sizes, each once, in ascending order.

    Raises:
        LpuError: they are no whole numbers in range, or the request has a batch of its own.
    """
    if not isinstance(request, Request):
        raise LpuError(
            f"request is {described(request)}; it must be a Request, such as Request(context=4096)."
        )
    if request.batch != 1:
        raise LpuError(f"batch of the request is {request.batch}; a sweep takes batches= instead.")
    listed = given.tolist() if isinstance(given, np.ndarray) else given
    sizes = _listed("batches", listed)
    for size in sizes:
        if not is_whole(size):
            raise LpuError(f"batch is {described(size)}; it must be a whole number.")
        check_request(replace(request, batch=int(size)), cfg)
    return sorted({int(size) for size in sizes})


def _check_shard(shard: tuple[int, int], shards: object) -> None:
    """Refuse a part of the work that is none.

    Raises:
        LpuError: no two numbers i and n with i from 1 to n, or no folder that parts share.
    """
    is_pair = isinstance(shard, tuple) and len(shard) == 2 and all(map(is_whole, shard))
    if not is_pair or not 1 <= shard[0] <= shard[1]:
        raise LpuError(
            f"shard is {shard if is_pair else described(shard)}; it must be (i, n), the i-th of n "
            "parts, from (1, n) to (n, n)."
        )
    if shard[1] > 1 and shards is None:
        raise LpuError("shard was given without shards; parts of a sweep meet in that folder.")
