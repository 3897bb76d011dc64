"""What `lpu compare` is asked of several scenarios at once, and what it does with their answer."""

import sys
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from lpu_jax.errors import LpuError
from lpu_jax.machine.mixed import MixedSystem
from models.config import ModelConfig

from ..rank import sweep as sweeping
from ..rank.chip_figures import Figure
from ..rank.sweep_result import Sweep, SweepInterrupted
from ..rank.workers import processes
from ..request import Request
from ..scenario import machine_of, splits_of
from .common import INTERRUPTED, NO, Outputs, watched


@dataclass(frozen=True, kw_only=True)
class Cases:
    """The scenarios of a command: each system with each policy and each batch size."""

    model: ModelConfig
    systems: list[str]
    policies: list[str]
    batches: list[int]
    request: Request  #: of one sequence

    def __len__(self) -> int:
        """How many there are."""
        return len(self.systems) * len(self.policies) * len(self.batches)


def compare_several(
    cases: Cases,
    options: Mapping[str, Any],
    out: Outputs,
    *,
    workers: int,
    shards: Path | None,
    shard: tuple[int, int] | None,
) -> None:
    """Compare plans of several scenarios, and give what was found, all or a part of it.

    Raises:
        LpuError: as `sweep`.
        typer.Exit: nothing fits, or Ctrl-C.
    """

    def work(executor: Executor | None) -> Sweep:
        return watched(
            lambda say: sweeping.sweep(
                cases.model,
                cases.systems,
                cases.request,
                policies=cases.policies,
                batches=cases.batches,
                executor=executor,
                shards=shards,
                shard=shard or (1, 1),
                progress=say,
                **options,
            )
        )

    try:
        with processes(workers) as executor:
            found = work(executor)
    except SweepInterrupted as stopped:
        found = stopped.sweep
        out.give(found, fits=bool(found.rows))
        print(f"lpu: stopped: {found.partial}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    if found.left:
        done = len(found.cases) - len(found.left)
        words = f"{done} of {len(found.cases)} cases are in {shards}; {len(found.left)} are left."
        print(f"lpu: {words}", file=sys.stderr)
        return
    out.give(found, fits=bool(found.rows))
    if not found.rows:
        raise typer.Exit(NO)


def split_names(systems: list[str], *, drafts: bool) -> list[str]:
    """Name each split of a mixed system where none was chosen; other systems as they are.

    Args:
        systems: names, or paths of files.
        drafts: whether there is a draft model.
    """
    names: list[str] = []
    for name in systems:
        machine = machine_of(name)
        if isinstance(machine, MixedSystem) and not machine.is_chosen:
            each = splits_of([machine], drafts=drafts)
            names += [f"{name}:{own.split}" for own in each if isinstance(own, MixedSystem)]
        else:
            names.append(name)
    return names


def refuse_for_several(cases: Cases, **options: int) -> None:
    """Refuse options that look into the plans of one scenario.

    Raises:
        LpuError: says which.
    """
    split = next((name for name in cases.systems if ":" in str(name)), None)
    hint = "" if split is None else f"; a mixed system has one for each split, such as {split}"
    for name, value in options.items():
        if value:
            raise LpuError(
                f"--{name} is for the plans of one scenario, without --per, --shards or --shard; "
                f"scenarios asked for: {len(cases)}{hint}."
            )


def batch_sizes(texts: list[str]) -> list[int]:
    """Read batch sizes: numbers, and ranges such as 1..256 that are doubled from end to end.

    Raises:
        LpuError: a text is neither, or a range is empty.
    """
    sizes: dict[int, None] = {}
    for text in texts:
        first, dots, last = text.partition("..")
        try:
            low, high = int(first), int(last if dots else first)
        except ValueError:
            raise LpuError(
                f"batch is {text!r}; it must be a whole number, or a range such as 1..256."
            ) from None
        if dots and not 1 <= low <= high:
            raise LpuError(f"batch is {text!r}; a range goes from at least 1 to no less.")
        while low <= high:
            sizes[low] = None
            if not dots:
                break
            low *= 2
    return list(sizes)


def figure(option: str, texts: list[str] | None) -> Figure:
    """Read a figure of a chip: one number for all systems, or one for each that is named.

    Raises:
        LpuError: a text is no number, or there are two for one system.
    """
    found: dict[str | None, float] = {}
    for text in texts or ():
        system, equals, number = text.rpartition("=")
        name = system if equals else None
        try:
            value = float(number)
        except ValueError:
            raise LpuError(
                f"{option} is {text!r}; it must be a number, or SYSTEM=NUMBER."
            ) from None
        if name in found or (found and None in (name, *found)):
            raise LpuError(f"{option} is given twice for {name or 'all systems'}; give it once.")
        found[name] = value
    if None in found:
        return found[None]
    return {name: value for name, value in found.items() if name is not None} or None


def share_of(text: str | None) -> tuple[int, int] | None:
    """Read which part of the work a run does.

    Raises:
        LpuError: it is not of the form I/N.
    """
    if text is None:
        return None
    part, _, parts = text.partition("/")
    try:
        return int(part), int(parts)
    except ValueError:
        raise LpuError(
            f"--shard is {text!r}; it must be I/N, such as 1/8 for the first of 8."
        ) from None
