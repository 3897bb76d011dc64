"""Random models, plans and policies against every promise that README makes of bits.

`python -m fuzz` (with `tests` on the path; `make fuzz` does it) draws triples for ever and
stops at the first that breaks a promise; the line that it prints runs that triple again. Each block
of a model is run alone, on random rows and a random past, by `fuzz.chips`; of some triples one
block is also run in every way of `lpu_jax.mesh`, which takes longer to compile.

A triple costs some 17 seconds of one core at first and 8 after thirty, as shapes recur: 9.9 on the
average of the first 44, which make 748 checks (two cores of a virtual x86-64 machine).
"""

import argparse
import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import jax
import numpy as np

from models.blocks import CACHING_KINDS, block_kinds
from models.layers.dispatch import Dispatch
from models.layers.linear import Split
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan
from sharding.rank.choose import (
    on_one_chip,
    promises_its_rule,
    promises_one_chip_bits,
    split_by,
)

from .blocks import Results, Subject, replaced, subjects
from .draw import BATCH, MOST_CHIPS, Triple, triple

#: One triple in so many runs a block in virtual chips, and one in so many compiles it as a whole
#: for virtual chips, devices and both nested.
VIRTUAL_EVERY, COMPILED_EVERY = 8, 32
#: Largest distance of rows that travel from rows that are everywhere, as a part of the largest
#: value: each adds up to ten roundings to fp16 of its own; another expert, or none, changes a row
#: by its size.
DISPATCH_BOUND = 2.0**-6


class BrokenPromiseError(AssertionError):
    """A promise that a triple breaks; the message is one line."""


def check(one: Triple, counts: Counter[str]) -> None:
    """Hold a triple against every promise; count the checks by promise.

    Raises:
        BrokenPromiseError: the first that it breaks.
    """
    for subject in subjects(one):
        for promise, expected, found in _checks(subject):
            counts[promise] += 1
            different = _difference(expected, found)
            if different:
                raise BrokenPromiseError(f"{one} | {subject.kind}: {promise} | {different}")


#: Blocks with an output projection.
SPLIT_KINDS = ("attention", "sliding", "unrotated", "dense", "moe")


def check_rule(
    one: Triple, counts: Counter[str], chosen: Sequence[Subject], *, ways: bool = True
) -> None:
    """Hold blocks against one chip under the rules of their plan, for one batch or another.

    Args:
        one: the triple.
        counts: of the checks, and of blocks that a split by rows would have changed.
        chosen: blocks of it that are split.
        ways: run those of the first triples in every way of `lpu_jax.mesh` too, and of some as a
            split by rows.

    Raises:
        BrokenPromiseError: a bit differs.
    """
    rows = slice(0, 1 + one.seed % BATCH)
    alone = on_one_chip(one.plan)

    def same(promise: str, expected: Results, found: Results) -> None:
        counts[promise] += 1
        different = _difference(expected, found)
        if different:
            raise BrokenPromiseError(f"{one} | {subject.kind}: {promise} | {different}")

    for subject in chosen:
        whole = subject.run(rows=rows)
        same("one chip's bits under its rules", subject.run(alone, rows=rows), whole)
        if not ways:
            continue
        if one.seed % COMPILED_EVERY < len(_WAYS) and subject.kind != "sliding":
            way = _WAYS[one.seed % COMPILED_EVERY]
            same(f"{way} = chips one by one", whole, subject.run(rows=rows, way=way))
        if one.seed % VIRTUAL_EVERY == 0:
            plain = subject.run(split_by(alone, Split.COLUMN), rows=rows)
            by_rows = subject.run(split_by(one.plan, Split.ROW), rows=rows)
            counts["compared with a split by rows"] += 1
            counts["of these, changed by it"] += bool(_difference(plain, by_rows))


#: Ways of `lpu_jax.mesh` in which blocks of the first triples are run too.
_WAYS = ("virtual", "compiled", "devices", "nested")


def _difference(expected: Results, found: Results) -> str:
    """Say where bits differ; all NaN are one."""
    for name, want in expected.items():
        have = found[name]
        if want.shape != have.shape or want.dtype != have.dtype:
            return f"{name}: {have.dtype}{have.shape}, not {want.dtype}{want.shape}"
        bits = [np.where(x != x, np.array(0, x.dtype), x).tobytes() for x in (want, have)]
        if bits[0] != bits[1] or not np.array_equal(want != want, have != have):
            n = int(np.sum((want != have) | (np.signbit(want) != np.signbit(have))))
            return f"{name}: {n} of {want.size} values differ"
    return ""


Checks = Iterator[tuple[str, Results, Results]]


def _checks(subject: Subject) -> Checks:
    """Yield promises with what must be equal."""
    whole = subject.run()
    for row in range(BATCH):
        yield from _alone(subject, whole, row)
    yield from _plans(subject, whole)
    if subject.kind == "moe":
        yield from _mixtures(subject, whole)
    if subject.kind in CACHING_KINDS:
        yield from _caches(subject, whole)
    yield from _ways(subject, whole)


def _alone(subject: Subject, whole: Results, row: int) -> Checks:
    """Compare a sequence that is decoded alone with its rows of a batch that is prefilled.

    One comparison is for two promises, and needs half the shapes; if it fails, each is tried.
    """
    expected = _row(subject, whole, row)
    found = subject.run(rows=slice(row, row + 1), step=1)
    if _difference(expected, _as_long(expected, found)):
        yield "decode = prefill", whole, subject.run(step=1)
        of_batch_one = subject.run(rows=slice(row, row + 1))
        yield "a row alone = in a batch", expected, _as_long(expected, of_batch_one)
    yield "decoded alone = prefilled in a batch", expected, _as_long(expected, found)


def _row(subject: Subject, whole: Results, row: int) -> Results:
    """One sequence of a batch."""
    per_row = len(subject.inputs[0]) if subject.kind == "head" else 1
    return {name: values[row * per_row : (row + 1) * per_row] for name, values in whole.items()}


def _as_long(expected: Results, found: Results) -> Results:
    """Append zeros to a cache up to the length of that of the longest sequence in a batch."""
    padded = dict(found)
    for name in found:
        axis = {"keys": -1, "values": -2}.get(name.removesuffix(".scales"))
        if axis is not None:
            widths = [(0, 0)] * found[name].ndim
            widths[axis] = (0, expected[name].shape[axis] - found[name].shape[axis])
            padded[name] = np.pad(found[name], widths)
    return padded


def _plans(subject: Subject, whole: Results) -> Checks:
    """Compare with other plans that promise the same bits."""
    one, plan = subject.triple, subject.triple.plan
    if promises_one_chip_bits(plan):
        alone = Plan(
            group_chips=1,
            attention=AttentionShard(),
            mlp=MlpShard(),
            moe=None if plan.moe is None else MoeShard(),
        )
        yield "one chip's bits", subject.run(alone), whole
    elif promises_its_rule(plan):
        yield "one chip's bits under its rules", subject.run(on_one_chip(plan)), whole
    if subject.kind in CACHING_KINDS and one.system.topology.node_chips >= MOST_CHIPS:
        yield "order of chips", subject.run(replaced(plan, "attention", order=_TURNED)), whole
    if (
        plan.moe is not None
        and subject.kind == "moe"
        and one.system.topology.node_chips >= MOST_CHIPS
    ):
        busy = tuple(axis for axis in plan.moe.order if axis != "replica")
        first_or_last = (*busy, "replica") if plan.moe.order[0] == "replica" else ("replica", *busy)
        turned = replaced(plan, "moe", order=first_or_last)
        yield "order of chips", subject.run(turned), whole
        if plan.moe.split is Split.COLUMN:
            turned = replaced(plan, "moe", order=("replica", *reversed(busy)))
            yield "order of chips", subject.run(turned), whole
    if plan.collective not in ("auto", "ring"):
        yield "collectives", subject.run(replace(plan, collective="auto")), whole


#: Heads outermost, then positions, sequences and copies: the opposite of the usual order.
_TURNED = ("tensor", "context", "data", "replica")


def _mixtures(subject: Subject, whole: Results) -> Checks:
    plan = subject.triple.plan
    assert plan.moe is not None
    yield "slots", subject.run(replaced(plan, "moe", slots=(plan.moe.slots or 0) + 9)), whole
    if plan.moe.dispatch is Dispatch.ALL_TO_ALL:
        stayed = subject.run(replaced(plan, "moe", dispatch=Dispatch.REPLICATED))["hidden"]
        sent, stayed = whole["hidden"].astype(np.float64), stayed.astype(np.float64)
        near = np.abs(sent - stayed) <= DISPATCH_BOUND * np.abs(stayed).max(-1, keepdims=True)
        yield "dispatch", {"near": np.ones_like(near)}, {"near": near}


def _caches(subject: Subject, whole: Results) -> Checks:
    one, plan = subject.triple, subject.triple.plan
    shard = plan.attention
    if shard.context == 1 or subject.kind == "sliding":
        yield "a longer cache", whole, subject.run(context=one.context + 320)
    held = 320 * -(-one.context // 320 // shard.context)
    # A sink takes its part of what chips have rounded already, so it has another rounding there.
    has_sink = getattr(one.cfg.attention, "sinks", False) and subject.kind != "sliding"
    if (
        shard.context > 1
        and not has_sink
        and (subject.kind == "sliding" or subject.positions.max() + subject.inputs.shape[1] <= held)
    ):
        copied = replaced(plan, "attention", context=1, replica=shard.replica * shard.context)
        yield "a context on one chip", subject.run(copied), whole


def _ways(subject: Subject, whole: Results) -> Checks:
    """Run one block of some triples in other ways."""
    one = subject.triple
    kinds = block_kinds(one.cfg)
    if subject.kind != kinds[one.seed // VIRTUAL_EVERY % len(kinds)]:
        return
    if one.seed % VIRTUAL_EVERY == 0:
        yield "virtual = chips one by one", whole, subject.run(way="virtual")
    if one.seed % COMPILED_EVERY == 0:
        for way in ("compiled", "devices", "nested"):
            yield f"{way} = chips one by one", whole, subject.run(way=way)


#: Triples after which compiled programs are dropped: few are shared, and they would fill memory.
_FORGET_EVERY = 20


def run(seeds: Iterator[int], *, every: int, rule: Split | None = None) -> int:
    """Check triples until one breaks a promise; print a line for some of them, and the failure.

    Args:
        seeds: of the triples.
        every: a line for so many triples.
        rule: hold splits of this kind against one chip under the same rule, and nothing else.

    Returns:
        The exit code.
    """
    counts: Counter[str] = Counter()
    begin = time.perf_counter(), time.process_time()
    n_done = 0
    for n_done, seed in enumerate(seeds, 1):
        one = triple(seed, rule)
        try:
            if rule is None:
                check(one, counts)
            else:
                check_rule(one, counts, [s for s in subjects(one) if s.kind in SPLIT_KINDS])
        except BrokenPromiseError as broken:
            which = "" if rule is None else f" --rule {rule}"
            again = f'make fuzz FUZZ_ARGS="--first {seed} --triples 1{which}"'
            print(f"BROKEN {broken} | again: {again}", flush=True)
            return 1
        if n_done % every == 0:
            _report(n_done, seed, counts, begin)
        if n_done % _FORGET_EVERY == 0:
            jax.clear_caches()
    _report(n_done, None, counts, begin)
    for promise, n in sorted(counts.items()):
        print(f"{n:7d}  {promise}")
    return 0


def _report(
    n_done: int, seed: int | None, counts: Counter[str], begin: tuple[float, float]
) -> None:
    last = "" if seed is None else f", the last of seed {seed}"
    seconds, cpu_seconds = time.perf_counter() - begin[0], time.process_time() - begin[1]
    print(
        f"{n_done} triples{last}: {counts.total()} checks, no promise broken; "
        f"{seconds / n_done:.1f} s a triple, {cpu_seconds / n_done:.1f} s of them on a processor",
        flush=True,
    )


def main(arguments: list[str]) -> int:
    """Read the command line and check triples."""
    parser = argparse.ArgumentParser(prog="fuzz", description="Random triples against promises.")
    parser.add_argument("--first", type=int, default=0, help="seed of the first triple")
    parser.add_argument("--triples", type=int, help="how many; without end if it is not given")
    parser.add_argument("--every", type=int, default=10, help="print a line for so many triples")
    parser.add_argument(
        "--rule", type=Split, choices=[Split.TREE, Split.WIDE], help="hold only this split"
    )
    given = parser.parse_args(arguments)
    seeds = itertools.islice(itertools.count(given.first), given.triples)
    return run(seeds, every=given.every, rule=given.rule)
