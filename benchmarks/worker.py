"""Jobs in a process of its own, so that two programs can be timed in turns: one core, one thread.

Seconds are of the processor: on an idle core those of the clock, and on a busy one not those of
other programs. Standard library only, since it also runs beside programs of other projects.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

_ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}


def pin_to_one_core() -> None:
    """Keep this process, and those that it starts, on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


class Worker:
    """A process that does the jobs of a script, one at a time."""

    def __init__(self, script: str, *, python: str | Path = sys.executable, root: Path) -> None:
        """Start a script of this folder.

        Args:
            script: its name.
            python: the interpreter.
            root: the checkout that it imports from.
        """
        self._process = subprocess.Popen(
            [str(python), str(Path(__file__).with_name(script))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | _ONE_THREAD | {"PYTHONPATH": str(root)},
        )

    def __call__(self, job: str, *arguments: Any) -> dict[str, Any]:
        """Do a job.

        Returns:
            Its `seconds` of the processor, its `result`, and the `peak_bytes` of the process.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([job, arguments]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"job {job} ended its process: exit {self._process.wait()}.")
        done: dict[str, Any] = json.loads(answer)
        return done

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve(jobs: Iterable[Callable[..., Any]]) -> None:
    """Do the jobs that a `Worker` asks for, by name, until it closes; drop what they print."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    by_name: Mapping[str, Callable[..., Any]] = {job.__name__: job for job in jobs}
    for line in sys.stdin:
        name, arguments = json.loads(line)
        start = time.process_time()
        result = by_name[name](*arguments)
        done = {
            "seconds": time.process_time() - start,
            "result": result,
            "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        }
        answers.write(json.dumps(done) + "\n")
        answers.flush()
