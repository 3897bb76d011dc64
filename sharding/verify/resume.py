"""What a long check knows after each block, in a file that is always whole.

A run that was stopped goes on with the block it was in and ends with the same bits. The file holds
hidden states, where tokens attend, and errors, no weights and no caches: a block is run on all
tokens before the next. Not here: what a run is identified by (`whole_model`).
"""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from lpu_jax.errors import LpuError

from ..files import reading, write_file
from ..plan import Plan
from ..run.execute import Relay
from .emulate import BlockCheck, Run
from .routing import RoutingCheck

_FORMAT = "lpu check, state 2"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is."""

    n_done: int  #: blocks, the embedding not counted
    seconds: float  #: spent so far, in all sittings
    runs: list[Run]


class Sitting:
    """One go at a run: what it knows, in a file if it is to be resumed, and the time of all goes.

    Args:
        path: of the file; None: the state is kept in memory only.
        identity: what makes the run this one, as values for JSON.
        plans: its plans.
        fresh: makes the runs where none were saved.

    Raises:
        LpuError: as `load_progress` and `save_progress`.
    """

    def __init__(
        self,
        path: Path | None,
        identity: Mapping[str, Any],
        plans: Sequence[Plan],
        fresh: Callable[[], list[Run]],
    ) -> None:
        self._path, self._identity = path, identity
        self._begun = perf_counter()
        saved = None if path is None else load_progress(path, identity, plans)
        if saved is not None:
            self.n_done, self.runs, self._before = saved.n_done, saved.runs, saved.seconds
            return
        self.n_done, self.runs, self._before = 0, fresh(), 0.0
        self._save()  # says at once if it cannot be written

    @property
    def seconds(self) -> float:
        """Time so far, over all sittings."""
        return self._before + perf_counter() - self._begun

    def note_block(self) -> None:
        """Count a block as done."""
        self.n_done += 1
        self._save()

    def _save(self) -> None:
        if self._path is not None:
            state = Progress(n_done=self.n_done, seconds=self.seconds, runs=self.runs)
            save_progress(self._path, self._identity, state)


def save_progress(path: Path, identity: Mapping[str, Any], progress: Progress) -> None:
    """Write the state of a run, whole or not at all.

    Args:
        path: of the file; what it held is replaced.
        identity: what makes the run this one, as values for JSON.
        progress: how far it is.

    Raises:
        LpuError: the file cannot be written.
    """
    state = {
        "format": _FORMAT,
        "identity": identity,
        "n_done": progress.n_done,
        "seconds": progress.seconds,
        "runs": [
            {
                "hidden": _packed(run.hidden),
                "reference": _packed(run.reference),
                "routes": run.routes,
                "checks": [asdict(check) for check in run.checks],
                "relays": [
                    None if relay.positions is None else _packed(np.asarray(relay.positions))
                    for relay in run.relays
                ],
                "seen": None if run.seen is None else _packed(run.seen),
            }
            for run in progress.runs
        ],
    }
    body = json.dumps(state)
    write_file(path, f"{_digest(body)}\n{body}\n")


def load_progress(
    path: Path, identity: Mapping[str, Any], plans: Sequence[Plan]
) -> Progress | None:
    """Read the state of a run; None if there is no file yet.

    Args:
        path: of the file.
        identity: of the run to be resumed.
        plans: its plans.

    Raises:
        LpuError: not a file of this kind, damaged, or from another run (says what differs).
    """
    with reading(f"resume file {path}"):
        if not path.exists():
            return None
        if not path.is_file():
            raise LpuError(f"resume file {path} must be a file.")
    try:
        content = path.read_text()
    except (OSError, UnicodeDecodeError):
        content = ""
    digest, _, body = content.partition("\n")
    if digest != _digest(body.removesuffix("\n")) or not body.startswith('{"format": '):
        raise LpuError(
            f"resume file {path} is damaged or was not written by lpu check; remove it to start "
            "afresh."
        )
    state = json.loads(body)
    if state["format"] != _FORMAT:
        raise LpuError(f"resume file {path} was written by another version of lpu check.")
    mine = json.loads(json.dumps(identity))  # as the file holds it: tuples are lists
    differing = [
        name
        for name in dict.fromkeys([*mine, *state["identity"]])
        if mine.get(name) != state["identity"].get(name)
    ]
    if differing:
        raise LpuError(
            f"resume file {path} is from another run: it differs in {', '.join(differing)}."
        )
    runs = [
        Run(
            plan=plan,
            hidden=_unpacked(saved["hidden"]),
            reference=_unpacked(saved["reference"]),
            routes=saved["routes"],
            checks=[_check(values) for values in saved["checks"]],
            relays=[
                Relay() if values is None else Relay(_unpacked(values))
                for values in saved["relays"]
            ],
            seen=None if saved["seen"] is None else _unpacked(saved["seen"]),
        )
        for plan, saved in zip(plans, state["runs"], strict=True)
    ]
    return Progress(n_done=state["n_done"], seconds=state["seconds"], runs=runs)


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()


def _check(values: dict[str, Any]) -> BlockCheck:
    routing = values["routing"]
    return BlockCheck(**values | {"routing": None if routing is None else RoutingCheck(**routing)})


def _packed(array: np.ndarray) -> dict[str, Any]:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return {
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "bytes": base64.b64encode(little.tobytes()).decode(),
    }


def _unpacked(values: dict[str, Any]) -> np.ndarray:
    dtype = np.dtype(values["dtype"])
    array = np.frombuffer(base64.b64decode(values["bytes"]), dtype.newbyteorder("<"))
    return array.astype(dtype).reshape(values["shape"])
