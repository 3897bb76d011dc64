"""The table of algorithms: what its readers rely on, and that the documents say the same."""

from pathlib import Path

from lpu_jax.cost.collectives.algorithms.table import ALGORITHMS, AUTO, EVERYWHERE, as_markdown
from lpu_jax.cost.collectives.kinds import LISTED_KINDS, OWN_PIECES, PRICED_KINDS
from lpu_jax.datapath.axis import ALGORITHM_NAMES
from lpu_jax.datapath.c2c import OWN_ORDERS

TIMING = Path(__file__).parents[4] / "docs" / "timing.md"


def test_names_and_kinds_are_those_that_readers_know() -> None:
    assert set(PRICED_KINDS) < set(LISTED_KINDS)
    assert set(OWN_PIECES) < set(PRICED_KINDS)
    assert sorted(ALGORITHM_NAMES) == sorted(["auto", *ALGORITHMS])
    for name, row in ALGORITHMS.items():
        assert name == row.name
        assert row.kinds
        assert set(row.kinds) <= set(PRICED_KINDS)
        assert set(row.also_listed) <= set(LISTED_KINDS) - set(PRICED_KINDS)


def test_one_algorithm_exists_for_every_run_and_kind() -> None:
    assert [row for row in ALGORITHMS.values() if row.needs is None] == [EVERYWHERE]
    assert {*EVERYWHERE.kinds, *EVERYWHERE.also_listed} == set(LISTED_KINDS)


def test_auto_leaves_out_only_orders_of_their_own() -> None:
    # That these are the ones whose bits differ is shown by values in test_c2c.
    assert set(ALGORITHMS) - set(AUTO) == set(OWN_ORDERS)
    assert EVERYWHERE.name in AUTO


def test_documents_have_the_table() -> None:
    table = TIMING.read_text(encoding="utf-8").split("a test compares -->\n")[1].split("\n<!--")[0]
    assert table == as_markdown()
    assert all(f"| `{name}` | {row.where}" in table for name, row in ALGORITHMS.items())
