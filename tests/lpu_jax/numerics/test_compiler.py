"""The compiler option that is refused: found as XLA finds it, and said in one sentence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lpu_jax.errors import LpuError
from lpu_jax.numerics.compiler import check_options

OPTION = "--xla_cpu_enable_fast_math"
PROGRAM = """
import jax.numpy as jnp
from lpu_jax.datapath import vxm
from lpu_jax.errors import LpuError
try:
    print(vxm.mul(jnp.ones(3, jnp.float32), 2.0))
except LpuError as error:
    print(error)
"""


@pytest.mark.parametrize("flags", [OPTION, f"{OPTION}=true", f"--xla_a=b  {OPTION}=1 --xla_c"])
def test_fast_math_is_refused(flags: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", flags)
    with pytest.raises(LpuError, match=f"XLA_FLAGS: {OPTION} was given; .* need it off"):
        check_options()


@pytest.mark.parametrize(
    "flags",
    [
        "",
        f"{OPTION}=false",
        f"{OPTION}=true {OPTION}=0",
        f"{OPTION}_of_mine",
        "--xla_cpu_ftz=false",
    ],
)
def test_other_options_are_not(flags: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", flags)
    check_options()


def test_options_in_a_file_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", str(tmp_path / "flags"))
    check_options()  # no such file: XLA says so itself
    (tmp_path / "flags").write_text(f"--xla_cpu_ftz=true\n{OPTION}=true\n", encoding="utf-8")
    with pytest.raises(LpuError, match="fast_math was given"):
        check_options()


@pytest.mark.slow
def test_a_program_says_so_and_no_more() -> None:
    path = os.pathsep.join(p for p in sys.path if p)
    environment = {**os.environ, "PYTHONPATH": path, "XLA_FLAGS": f"{OPTION}=true"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"XLA_FLAGS: {OPTION} was given;")
    assert done.stdout.count("\n") == 1
