"""The same bits on other processors: older ones are emulated, each in a process of its own.

XLA is told to use fewer instructions (`--xla_cpu_max_isa`), NumPy to use fewer of those it found,
and the process to stay on one core. `processor_hashes` prints a hash of every part.
"""

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from processor_hashes import CANNOT

from lpu_jax.numerics.arithmetic import X86_PROCESSORS


@dataclass(frozen=True, kw_only=True)
class Processor:
    """How a process is made to believe that it runs on another processor."""

    name: str
    flags: str = ""  #: of XLA
    without: str = ""  #: NumPy does without instructions whose names contain one of these words
    one_core: bool = False
    x86_only: bool = True


THIS = Processor(name="this", x86_only=False)
OTHERS = (
    Processor(name="AVX2", flags="--xla_cpu_max_isa=AVX2", without="512 V4 AMX"),
    Processor(name="SSE4.2", flags="--xla_cpu_max_isa=SSE4_2", without="512 V4 AMX V3 AVX FMA F16"),
    Processor(
        name="one core",
        flags="--xla_cpu_multi_thread_eigen=false",
        one_core=True,
        x86_only=False,
    ),
)


def found_by_numpy() -> list[str]:
    """Instructions that NumPy chooses at run time, and that it finds here."""
    config: Any = np.show_config(mode="dicts")
    found: list[str] = config["SIMD Extensions"].get("found", [])
    return found


def hashes(processor: Processor) -> dict[str, str]:
    """Print the hashes on a processor; skip the test where XLA knows no such flag."""
    words = processor.without.split()
    disabled = [name for name in found_by_numpy() if any(word in name for word in words)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": processor.flags,
        "NPY_DISABLE_CPU_FEATURES": " ".join(disabled),
    }
    code = "from processor_hashes import main; main()"
    if processor.one_core:
        core = min(os.sched_getaffinity(0))
        code = f"import os; os.sched_setaffinity(0, [{core}]); {code}"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    if "Unknown flag" in done.stderr:
        pytest.skip(f"this XLA knows not all of {processor.flags}")
    assert done.returncode == 0, done.stderr
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


@pytest.fixture(scope="module")
def here() -> dict[str, str]:
    return hashes(THIS)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="cores are chosen as Linux does it")
@pytest.mark.parametrize("processor", OTHERS, ids=lambda p: p.name)
def test_every_part_has_the_same_bits(processor: Processor, here: dict[str, str]) -> None:
    if processor.x86_only and platform.machine() not in X86_PROCESSORS:
        pytest.skip("instructions of x86")
    found = hashes(processor)
    assert found.keys() == here.keys()
    for part, value in found.items():
        assert value in (here[part], CANNOT), part
    if processor.name != "SSE4.2":
        assert CANNOT not in found.values()


@pytest.mark.slow
def test_constants_have_the_bits_of_arguments(here: dict[str, str]) -> None:
    assert here["vector_functions_of_constants"] == here["vector_functions"]
