"""The command line of the fuzz: sets up JAX as `tests/conftest.py` does, and cheaper to compile."""

import os
import sys

os.environ.update(
    {
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "JAX_NUM_CPU_DEVICES": "8",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        # Promised bits are those of any compiler options; without optimisation a triple costs half.
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=0 "
        "--xla_llvm_disable_expensive_passes=true",
    }
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

if __name__ == "__main__":
    from fuzz.promises import main

    sys.exit(main(sys.argv[1:]))
