"""One collective twice: priced in closed form, and listed link by link."""

import dataclasses

import numpy as np

from lpu_jax.cost.collectives.link_schedule import link_schedule
from lpu_jax.cost.collectives.links import schedule

CLOCK_HZ = 1e9


def closed(topology, kind, algorithm, n, *, first=0, stride=1):
    """The closed form over one run, or over the interleaved runs of one block."""
    span = dataclasses.replace(topology.span([first], n * stride), n_chips=n)
    return schedule(topology, CLOCK_HZ, kind, algorithm, span, stride)


def explicit(topology, kind, algorithm, n, payload_bytes, *, first=0, stride=1):
    """The same, written out link by link."""
    runs = np.add.outer(first + np.arange(stride), stride * np.arange(n))
    return link_schedule(topology, CLOCK_HZ, kind, algorithm, runs, payload_bytes)
