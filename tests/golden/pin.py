"""Pin what the cost model predicts: run after a deliberate change of a rule or a constant.

`python tests/golden/pin.py` computes every case of `predictions.json` again and writes what it
found; the difference in version control is the change of prediction to be explained.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from lpu_jax.machine.catalogue import system as named_system
from lpu_jax.machine.system import System
from models.policy import policy_named
from models.zoo import model as named_model
from sharding.legal import check_plan
from sharding.plan_file import plan_from_dict
from sharding.predict.evaluate import evaluate
from sharding.request import Request
from sharding.scenario import Scenario

PINNED = Path(__file__).with_name("predictions.json")
#: Significant digits: cycles are sums of rounded and unrounded terms; nothing else is compared.
DIGITS = 12


def constants_key(system: System) -> str:
    """A hash of every number that the machine is made of."""
    numbers = [(c.name, repr(c.value), c.unit) for c in system.constants()]
    return hashlib.sha256(json.dumps(numbers).encode()).hexdigest()[:16]


def predict(case: dict[str, Any]) -> dict[str, float | int | bool]:
    """Evaluate the plan of one case."""
    cfg, system = named_model(case["model"]), named_system(case["system"])
    policy = policy_named(case["policy"], cfg)
    request = Request(**case["request"])
    plan = plan_from_dict(case["plan"])
    check_plan(plan, Scenario(cfg, system, request, policy=policy))
    found = evaluate([plan], Scenario(cfg, system, request, policy=policy))
    numbers = {
        "latency_cycles": found.latency_cycles,
        "lower_cycles": found.lower_cycles,
        "upper_cycles": found.upper_cycles,
        "slowest_stage_cycles": found.slowest_stage_cycles,
        "hand_over_cycles": found.hand_over_cycles,
        "wire_bytes": found.wire_bytes,
        "weight_bytes": found.weight_bytes,
        "cache_bytes": found.cache_bytes,
        "activation_bytes": found.activation_bytes,
    }
    rounded = {name: float(f"{float(value[0]):.{DIGITS}g}") for name, value in numbers.items()}
    return rounded | {"fits": bool(found.fits[0]), "in_flight": int(found.in_flight[0])}


def main() -> None:
    """Pin every case again."""
    cases = json.loads(PINNED.read_text(encoding="utf-8"))
    for case in cases:
        case["constants"] = constants_key(named_system(case["system"]))
        case["predicted"] = predict(case)
    PINNED.write_text(json.dumps(cases, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
