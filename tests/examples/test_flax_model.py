"""The example for users of Flax runs, and its numbers are in the order that they must be in."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "flax_model.py"


@pytest.mark.slow
def test_a_flax_model_is_read_in_error_loss_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    if not EXAMPLE.exists():
        pytest.skip("examples are not part of an installed package")
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 55, "it is there to be read"
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    out = capsys.readouterr().out
    fp16, int8, mxfp4 = (float(db) for db in re.findall(r"([\d.]+) dB", out))
    # fp16 has eleven significant bits, int8 seven, mxfp4 two.
    assert fp16 > 60 > 45 > int8 > 30 > 25 > mxfp4 > 15
    before, after = re.search(r"two steps: ([\d.]+), ([\d.]+)", out).groups()  # type: ignore[union-attr]
    assert float(after) < float(before)
    assert out.count("mxm_matmul") == 6
    assert max(len(line) for line in out.splitlines()) <= 150
