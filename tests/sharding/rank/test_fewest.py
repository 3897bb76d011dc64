"""The smallest part of a machine: what is asked for fits on it, and on no smaller one."""

from dataclasses import replace
from typing import Any

import pytest

from lpu_jax.errors import LpuError
from lpu_jax.machine.catalogue import system
from models.zoo import model
from sharding.rank.compare import compare
from sharding.rank.fewest import on_fewest_chips
from sharding.request import decode_request

NODE = system("groq-node")
#: Three chips share out its heads and so its cache; two have no room.
SMALL = replace(model("smollm2-135m"), n_layers=1)
ASKED = decode_request(batch=64, context=6000, draft_tokens=2, acceptance=0.5)
DRAFTS = replace(SMALL, name="drafts", attention=replace(SMALL.attention, n_kv_heads=1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "n_chips"),
    [
        ({}, 3),
        ({"invariant": "tree"}, 4),  # a tree is over a power of two
        ({"draft_model": DRAFTS}, 5),
        ({"draft_model": DRAFTS, "invariant": "tree"}, 6),
        # A draft model gets a power of two, and at most half.
        ({"draft_model": SMALL}, 8),
    ],
)
def test_all_that_is_asked_for_fits(options: Any, n_chips: int) -> None:
    found = on_fewest_chips(SMALL, NODE, ASKED, **options)
    assert (found.n_chips, found.name) == (n_chips, f"{n_chips} of groq-node")
    for n, fits in ((n_chips - 1, False), (n_chips, True)):
        part = replace(NODE, n_chips=n)
        assert (compare(SMALL, part, ASKED, **options, top=1).fitting > 0) is fits


def test_what_fits_nowhere_is_said() -> None:
    four = replace(NODE, n_chips=4)
    with pytest.raises(LpuError, match=r"fits beside draft model .* on no number of the 4 chips"):
        on_fewest_chips(SMALL, four, ASKED, draft_model=SMALL)
    with pytest.raises(LpuError, match="unknown invariant 'trees'"):
        on_fewest_chips(SMALL, NODE, ASKED, invariant="trees")
