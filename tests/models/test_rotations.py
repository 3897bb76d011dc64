"""Rotations of released models against two others' reading of the same files.

One is transformers' own (`data/rotations.json`, made by `data/make_rotations.py`), in float32; the
other is below, written from the documentation of its `rope_parameters`, in decimal arithmetic of 50
digits, so that angles at the end of long contexts can be compared too.
"""

import json
import math
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.config import ModelConfig
from models.hf_config import from_hf
from models.layers.rotary import rotary_tables
from models.rope import RopeConfig

DATA, CONFIGS = Path(__file__).parent / "data", Path(__file__).parents[2] / "models" / "configs"
GOLDEN = json.loads((DATA / "rotations.json").read_text())
#: transformers evaluates the formula in float32: a power, a division and a blend.
FLOAT32_FORMULA = 1e-6
#: Ours in float64 against the exact one: a power whose exponent is rounded, then a blend.
FLOAT64_FORMULA = 1e-14
#: Files that the second reader reads; it knows no lists by layer (Step).
READ = sorted(name for name in GOLDEN if name != "step-3.7-flash")
POSITIONS = (1, 4_095, 131_071, 1_000_000)


def fields_of(name: str) -> dict[str, Any]:
    kept = GOLDEN[name].get("config")
    fields = json.loads((CONFIGS / f"{name}.json").read_text()) if kept is None else kept
    return fields


def rope_of(cfg: ModelConfig, kind: str) -> RopeConfig:
    return cfg.sliding_rope if kind == "sliding_attention" and cfg.sliding_rope else cfg.rope


# --- transformers ---------------------------------------------------------------------------------


def distance(rope: RopeConfig, facts: dict[str, Any]) -> float:
    """Largest relative distance of frequencies, and of the factor; still pairs must have 0."""
    wanted, found = np.array(facts["inverse_frequencies"]), rope.inverse_frequencies()
    still = wanted[len(found) :]
    if len(wanted) < len(found) or still.any():
        return math.inf
    of_factor = abs(rope.attention_factor / facts["attention_factor"] - 1)
    return max(of_factor, float(np.max(np.abs(found / wanted[: len(found)] - 1))))


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_rotations_are_those_of_transformers(name):
    cfg = from_hf(fields_of(name))
    for kind, facts in GOLDEN[name]["rotations"].items():
        assert distance(rope_of(cfg, kind), facts) < FLOAT32_FORMULA, kind


def test_every_file_that_rotates_is_compared():
    """What is left out rotates nothing, or is of a type that transformers lacks (Ling 1T)."""
    absent = {path.stem for path in CONFIGS.glob("*.json")} - GOLDEN.keys()
    assert "ling-1t" in absent
    for name in absent - {"ling-1t"}:
        cfg = from_hf(CONFIGS / f"{name}.json")
        others = {*range(cfg.n_layers)} - {*cfg.recurrent_layers} - {*cfg.unrotated_layers}
        kinds = {kind for layer in others for kind in cfg.layer_kinds(layer)}
        assert kinds <= {"dense", "moe", "recurrent", "unrotated"}, name


YARN = fields_of("gpt-oss-120b")["rope_scaling"]


def test_a_wrong_reading_would_be_seen():
    """Another base or share, a rule left out or read otherwise: far beyond the tolerance."""
    for name, change in (
        ("qwen3-32b", {"rope_theta": 5e5}),
        ("llama-3.1-8b", {"rope_scaling": None}),
        ("glm-4.6", {"partial_rotary_factor": 0.25}),
        ("gpt-oss-120b", {"rope_scaling": YARN | {"truncate": True}}),
    ):
        cfg = from_hf(fields_of(name) | change)
        assert distance(cfg.rope, GOLDEN[name]["rotations"]["all"]) > 1000 * FLOAT32_FORMULA, name
    swapped = from_hf(fields_of("gemma-3-27b"))
    facts = GOLDEN["gemma-3-27b"]["rotations"]
    assert distance(swapped.rope, facts["sliding_attention"]) > 0.1


# --- the second reader ----------------------------------------------------------------------------


def part_of(fields: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return base, rotated share and rule of a kind of layer, by either spelling."""
    text = fields.get("text_config", fields)
    modern = text.get("rope_parameters") or {}
    part = dict(modern.get(kind) or modern)
    part |= text.get("rope_scaling") or {} if not modern and kind != "sliding_attention" else {}
    base = text.get("rope_theta", 1e6 if text["model_type"] == "gemma3_text" else None)
    if kind == "sliding_attention" and not modern:
        base = text.get("swa_rope_theta", text.get("rope_local_base_freq", 10_000.0))
    part.setdefault("rope_theta", base)
    head = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    if kind == "full_attention":
        head = text.get("global_head_dim", head)
    share = part.get("partial_rotary_factor", text.get("partial_rotary_factor", 1.0))
    turned = int(head * share)
    part["turned"] = text.get("qk_rope_head_dim") or text.get("rotary_dim") or turned
    part["of"] = head if part.get("rope_type") == "proportional" else part["turned"]
    return part


def exact_frequencies(part: dict[str, Any]) -> list[Decimal]:
    """Radians per position of each pair that turns, by the rules' published formulas."""
    theta = Decimal(str(part["rope_theta"]))
    log_theta, width = theta.ln(), Decimal(part["of"])
    pairs = part["turned"] // 2
    plain = [(-log_theta * 2 * pair / width).exp() for pair in range(pairs)]
    rule = part.get("rope_type", part.get("type", "default"))
    if rule in ("default", "proportional"):
        return plain
    factor = Decimal(str(part["factor"]))
    slow = [frequency / factor for frequency in plain]
    if rule == "linear":
        return slow
    two_pi = 2 * PI
    original = Decimal(part["original_max_position_embeddings"])
    if rule == "llama3":
        low, high = (Decimal(str(part[f"{end}_freq_factor"])) for end in ("low", "high"))
        turns = [original * frequency / two_pi for frequency in plain]
        kept = [
            Decimal(t >= low) if low == high else min(max((t - low) / (high - low), 0), Decimal(1))
            for t in turns
        ]
    else:
        fast, slowest = (Decimal(str(part[f"beta_{end}"])) for end in ("fast", "slow"))
        first, last = (
            width * (original / (beta * two_pi)).ln() / (2 * log_theta) for beta in (fast, slowest)
        )
        if part.get("truncate", True):
            first, last = Decimal(math.floor(first)), Decimal(math.ceil(last))
        first, last = max(first, Decimal(0)), min(last, width - 1)
        last += Decimal("0.001") if first == last else 0
        ramps = [(pair - first) / (last - first) for pair in range(pairs)]
        kept = [1 - min(max(ramp, Decimal(0)), Decimal(1)) for ramp in ramps]
    both = zip(kept, plain, slow, strict=True)
    return [share * f + (1 - share) * s for share, f, s in both]


PI = Decimal("3.14159265358979323846264338327950288419716939937510582")


@pytest.fixture(autouse=True)
def _fifty_digits():
    with localcontext() as context:
        context.prec = 50
        yield


@pytest.mark.parametrize("name", READ)
def test_frequencies_are_those_of_the_second_reader(name):
    fields = fields_of(name)
    cfg = from_hf(fields)
    for kind in GOLDEN[name]["rotations"]:
        exact = np.array([float(f) for f in exact_frequencies(part_of(fields, kind))])
        found = rope_of(cfg, kind).inverse_frequencies()
        np.testing.assert_allclose(found, exact, rtol=FLOAT64_FORMULA, err_msg=kind)


@pytest.mark.parametrize("name", READ)
def test_angles_hold_at_the_end_of_long_contexts(name):
    """Within a context, an angle is off by its own rounding: 1e6 turns of 2**-53, and the rate's.

    That is 1e6 * (FLOAT64_FORMULA / 10) = 1e-9 radians at most, far below what float32 tells apart.
    """
    fields = fields_of(name)
    cfg = from_hf(fields)
    for kind in GOLDEN[name]["rotations"]:
        exact = exact_frequencies(part_of(fields, kind))
        ours = rope_of(cfg, kind).inverse_frequencies()
        for position in (p for p in POSITIONS if p < cfg.max_position):
            angles = np.float64(position) * ours
            for angle, frequency in zip(angles, exact, strict=True):
                off = abs(Decimal(float(angle)) - position * frequency)
                assert off < Decimal("1e-9"), (kind, position)


def table_distance(tables: dict[str, Any], rope: RopeConfig, exact: list[Decimal], at: int):
    """Largest distance of a row of the tables from cosines and signed sines of exact angles."""
    reduced = [float(at * frequency % (2 * PI)) for frequency in exact]
    cos, sin = (rope.attention_factor * np.array([f(r) for r in reduced]) for f in COS_AND_SIN)
    if rope.interleaved:
        wanted = np.repeat(cos, 2), np.stack((-sin, sin), axis=-1).reshape(-1)
    else:
        wanted = np.concatenate((cos, cos)), np.concatenate((-sin, sin))
    pairs = zip(("cos", "sin"), wanted, strict=True)
    return max(float(np.max(np.abs(tables[name][at] - row))) for name, row in pairs)


COS_AND_SIN = (math.cos, math.sin)
#: Half a unit of float32 next to 1 or, for factors above 1, next to 2; and the angle's 1e-9.
HALF_A_UNIT = {False: 2**-25 + 1e-9, True: 2**-24 + 1e-9}


@pytest.mark.parametrize("name", ["llama-3.1-8b", "gpt-oss-120b", "kimi-k2-instruct"])
def test_tables_hold_exact_angles(name):
    fields = fields_of(name)
    rope, exact = from_hf(fields).rope, exact_frequencies(part_of(fields, "all"))
    tables = rotary_tables(rope, 4_096)
    bound = HALF_A_UNIT[rope.attention_factor > 1]
    for position in (0, 1, 777, 4_095):
        assert table_distance(tables, rope, exact, position) <= bound
    assert table_distance(tables, rope, [f * (1 + Decimal("1e-6")) for f in exact], 4_095) > 1e-3


@pytest.mark.slow
def test_tables_hold_exact_angles_at_131_071():
    fields = fields_of("kimi-k2-instruct")
    rope, exact = from_hf(fields).rope, exact_frequencies(part_of(fields, "all"))
    tables = rotary_tables(rope, 131_072)
    assert table_distance(tables, rope, exact, 131_071) <= HALF_A_UNIT[False]
