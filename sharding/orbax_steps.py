"""Numbered steps of named arrays in a folder, by Orbax: a step is there whole or not at all.

Orbax writes a step into a temporary directory and renames it at the end, so that an interrupted
save leaves the steps before it as they were. Items are written as they come, one in memory at a
time. Not modelled: what the arrays mean (`saved`), several processes, steps that are written while
others are read.

This module imports Orbax, which is slow: import it where it is used.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp  # type: ignore[import-untyped]
from jaxtyping import Shaped

from lpu_jax.errors import WeightsError

#: Steps that stay; older ones are deleted once a newer one is complete.
STEPS_KEPT = 2
_DESCRIPTION = "state.json"

Item = dict[str, Shaped[np.ndarray, "..."]]


class _Items(ocp.CheckpointHandler):  # type: ignore[misc]
    """Writes a stream of items, each by Orbax's own handler of trees, then what describes them."""

    def __init__(self) -> None:
        self.trees = ocp.StandardCheckpointHandler()

    def save(self, directory: Any, args: "_Save") -> None:
        """Write a step into the temporary directory that Orbax made."""
        for name, item in args.items:
            (directory / name).mkdir()
            self.trees.save(directory / name, args=ocp.args.StandardSave(item))
            self.trees.finalize(directory / name)
            del item  # the next is made before this name would be bound again
        (directory / _DESCRIPTION).write_text(json.dumps(args.describe(), indent=1))

    def restore(self, directory: Any, args: "_Read") -> Any:
        """Read one item of a step, or its description."""
        if args.name is None:
            described = json.loads((directory / _DESCRIPTION).read_text())
            return described, {path.name for path in directory.iterdir() if path.is_dir()}
        return self.trees.restore(directory / args.name)

    def close(self) -> None:
        """Let go of the handler of trees."""
        self.trees.close()


@ocp.args.register_with_handler(_Items, for_save=True)
@dataclass(kw_only=True)
class _Save(ocp.args.CheckpointArgs):  # type: ignore[misc]
    items: Iterator[tuple[str, Item]]
    describe: Callable[[], Mapping[str, Any]]


@ocp.args.register_with_handler(_Items, for_restore=True)
@dataclass(kw_only=True)
class _Read(ocp.args.CheckpointArgs):  # type: ignore[misc]
    name: str | None


def steps(folder: Path) -> list[int]:
    """List the complete steps of a folder, ascending; a folder that is absent has none."""
    if not folder.is_dir():
        return []
    with _manager(folder) as manager:
        return sorted(manager.all_steps())


def write_step(
    folder: Path,
    step: int,
    items: Iterator[tuple[str, Item]],
    describe: Callable[[], Mapping[str, Any]],
) -> None:
    """Write a step, then delete all but the last `STEPS_KEPT`.

    Remains of an interrupted save are deleted first. If an item cannot be made or written, the
    folder is left as it was.

    Args:
        folder: made if it is absent.
        step: higher than any in the folder.
        items: name and arrays of each item, asked for one after the other.
        describe: called after the last item; its result is written as JSON beside them.

    Raises:
        WeightsError: the folder cannot be written.
    """
    is_new = not folder.exists()
    try:
        with _manager(folder, create=True, cleanup_tmp_directories=True) as manager:
            manager.save(step, args=_Save(items=items, describe=describe))
    except BaseException as error:
        if folder.is_dir():
            with _manager(folder, cleanup_tmp_directories=True):
                pass
            if is_new:
                folder.rmdir()
        if isinstance(error, OSError):
            raise WeightsError(f"{folder} cannot be written: {error.strerror}.") from None
        raise


def read_item(folder: Path, step: int, name: str) -> Item:
    """Read the arrays of one item.

    Raises:
        WeightsError: it is missing or cannot be read.
    """
    where = f"step {step} of {folder}"
    try:
        item = _read(folder, step, name)
    except FileNotFoundError:
        raise WeightsError(f"{where}: {name} is missing.") from None
    except MemoryError:
        raise
    except Exception as error:  # Orbax and its stores raise many types for one broken file
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise WeightsError(f"{where}: {name} is damaged: {reason[:200]}") from None
    if not isinstance(item, dict) or not all(isinstance(a, np.ndarray) for a in item.values()):
        raise WeightsError(f"{where}: {name} is damaged: it holds other things than arrays.")
    return item


def read_description(folder: Path, step: int) -> tuple[Any, set[str]]:
    """Read what describes a step, as plain values, and the names of its items.

    Raises:
        WeightsError: there is none, or it is not JSON.
    """
    try:
        described, names = _read(folder, step, None)
    except (OSError, ValueError, KeyError, RecursionError):
        raise WeightsError(
            f"step {step} of {folder} is not a saved state: no readable {_DESCRIPTION}."
        ) from None
    return described, names


def _read(folder: Path, step: int, name: str | None) -> Any:
    with _manager(folder) as manager:
        return manager.restore(step, args=_Read(name=name))


@contextmanager
def _manager(folder: Path, **options: Any) -> Iterator[Any]:
    """Open a folder of steps; Orbax's own messages are kept from the user, its errors are not."""
    messages = logging.getLogger("absl")
    level = messages.level
    messages.setLevel(logging.CRITICAL)
    try:
        with ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                **{"create": False, **options},
                max_to_keep=STEPS_KEPT,
                enable_async_checkpointing=False,
            ),
            item_handlers=_Items(),
        ) as manager:
            yield manager
    finally:
        messages.setLevel(level)
