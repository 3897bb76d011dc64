"""The example in the repository runs and prints its three readings."""

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "one_block.py"


@pytest.mark.slow
def test_one_block_is_read_three_ways(capsys: pytest.CaptureFixture[str]) -> None:
    if not EXAMPLE.exists():
        pytest.skip("examples are not part of an installed package")
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 60, "it is there to be read"
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    out = capsys.readouterr().out
    assert "column split over 8 chips" in out
    assert "100.0% as on one chip" in out
    assert "gate_up" in out
    assert "c2c_all_reduce" in out
    assert max(len(line) for line in out.splitlines()) <= 120
