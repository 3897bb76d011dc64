"""Fresh random checkpoints of every family, made and computed by Hugging Face transformers here.

Needs the dependency group `oracle` (torch and transformers; `make oracle` installs it); skipped
without. The seed is not the one of the committed files.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest
from small_machines import NODE
from tiny_models import HF_BOUND, NAMES, TINY, checkpoint, difference, oracle

from models.policy import FLOAT32
from models.reference import stream
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan
from sharding.run.forward import forward

SEED = 20
PLAN = Plan(
    group_chips=2,
    attention=AttentionShard(tensor=2),
    mlp=MlpShard(tensor=2),
    moe=MoeShard(expert=2),
)
MISSING = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)}: `make oracle`"),
]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fresh")
    # In a process of its own: torch brings threads and warnings along.
    script = TINY.parent / "make_oracle.py"
    command = [sys.executable, script, "--out", folder, "--seed", str(SEED), *NAMES]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    made = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_fresh_checkpoints_agree(name, fresh):
    tokens, _ = oracle(name, fresh)
    source = checkpoint(name, fresh).weights
    assert difference(stream(source, jnp.asarray(tokens)), name, fresh) < HF_BOUND
    assert difference(forward(source, NODE, PLAN, tokens, policy=FLOAT32), name, fresh) < HF_BOUND
