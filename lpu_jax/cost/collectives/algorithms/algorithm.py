"""What a row of the table of algorithms says: all that is known of one algorithm, in one place.

Its price and its route are two readings of the same steps and know nothing of each other: tests
compare the two. The order in which it adds is part of what chips compute, and so is stated where
they compute it (`datapath.c2c.OWN_ORDERS`). Not modelled: as in `links`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from ....datapath.c2c import OWN_ORDERS
from ....machine.ports import Numbers
from ....machine.topology import Topology
from ..closed_form.setting import Setting
from ..closed_form.steps import Step
from ..routes.rows import Rows

Runs = Int[np.ndarray, "runs chips"]


def everywhere(where: Setting) -> Numbers:
    """Every run."""
    return where.run.n >= 1


def nowhere(where: Setting, kind: str) -> Numbers:
    """No run, whatever the kind."""
    del kind
    return where.run.n < 1


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """One algorithm.

    Attributes:
        name: what plans and reports call it.
        kinds: kinds of collective that it exists for.
        also_listed: kinds that `link_schedule` lists but `links` does not price.
        where: where it exists, for a table in words.
        steps: its steps for an all_reduce, or its only kind, for the same table.
        exists: runs for which all its links exist.
        needs: what it needs in order to exist on a machine, for the refusal; None if it exists for
            every run.
        price: its steps as formulas over many plans, for a kind.
        slice_vectors: vectors of the payload that pass its steps together if it is pipelined, for a
            kind: at least as many as the route has pieces, of one vector each, and a multiple.
        exact: runs over several nodes for which the formulas are the time of the explicit steps.
        route: who sends which pieces to whom, for a kind and runs of at least two chips, and into
            how many pieces the payload is cut; refuses runs without its links.
        step_names: what happens in some phases of the route, for a kind; the words are those of
            the steps of `price`.
        differs: runs for which it is not the same as another algorithm, so that `auto` tries it.
    """

    name: str
    kinds: tuple[str, ...]
    also_listed: tuple[str, ...] = ()
    where: str
    steps: str
    exists: Callable[[Setting], Numbers]
    needs: Callable[[Topology], str] | None
    price: Callable[[Setting, str], tuple[Step, ...]]
    slice_vectors: Callable[[Setting, str], Numbers]
    exact: Callable[[Setting, str], Numbers]
    route: Callable[[Topology, str, Runs], tuple[Rows, int]]
    step_names: Callable[[str, list[int]], tuple[str, ...]]
    differs: Callable[[Setting], Numbers] = everywhere

    @property
    def has_own_order(self) -> bool:
        """Whether it adds in another order than the others, and so has to be asked for by name."""
        return self.name in OWN_ORDERS
