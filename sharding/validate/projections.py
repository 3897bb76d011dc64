"""Figures of the Groq 3 LPX that leave too much open: a preview's rates, a vendor's projections.

They stand beside what we can honestly give and never pass or fail. What drafts for the proxy, and
how much of it is kept, is not public.

Sources, by key: AA Artificial Analysis, 2026-08: a private preview, one user, median of 50
sequential requests, whether drafts were used is not public. HC26 notes on the Hot Chips 2026 talk:
ends of four curves, read off a plot. The shape of the proxy that the talk scales from gpt-oss-120b
is not published; ours is a community's reconstruction.
"""

from dataclasses import replace
from functools import cache
from typing import Any

from lpu_jax.machine.mixed import Split
from models.config import GqaConfig, ModelConfig
from models.zoo import model as named_model

from ..report import Watcher
from ..request import Request
from ..scenario import scenario
from .anchors import fastest, fewest_racks
from .figures import Figure, Group
from .reading import plan_reading

_AA = "AA: {rate:,} tokens/s, chips and drafts not public"
#: Gemma 4 31B: the number in its name; its released bytes are not known to us.
GEMMA_WEIGHTS = 31e9
#: Which formats were served is not public.
GEMMA_POLICY = "fp8"
#: AA: tokens/s of one user, by positions of the context.
GEMMA_TOKENS_PER_S = {100_000: 3431, 10_000: 3382}

#: HC26: 400K cached, 4K new, 400 out; formats of the release of gpt-oss.
PROXY_REQUEST, PROXY_POLICY = Request(context=404_400), "mxfp4-experts"
#: Racks to begin with: they hold the weights four times over.
MOST_LPX_RACKS = 32


def gemma_served() -> tuple[Figure, ...]:
    """Gemma 4 31B on LPX: published rates beside our best plan on one rack."""
    return tuple(_gemma_at(context, rate) for context, rate in GEMMA_TOKENS_PER_S.items())


def _gemma_at(context: int, rate: int) -> Figure:
    asked = scenario("gemma-4-31b", "lpx-rack", Request(context=context), policy=GEMMA_POLICY)
    assert asked.system.lpus is not None
    chip = asked.system.lpus[0]
    rack_bytes_per_s = asked.system.n_chips * chip.weight_stream_bytes_per_cycle * chip.clock_hz
    best = fastest(asked)
    reading: dict[str, Any] = {
        "bound": GEMMA_WEIGHTS / rack_bytes_per_s * 1e6,
        "bound_of": "31e9 weights of one byte through all weight streams of one rack",
    }
    note = "no reading: no plan of ours fits one rack, where each chip of attention holds the "
    note += "tables of both rotations for every position (our choice)"
    if best is not None:
        reading = plan_reading(best, asked, 1e6, chosen=True)
        note = f"our best plan on one rack, without drafts; {best.name}, weights {GEMMA_POLICY}"
    return Figure(
        what=f"Gemma 4 31B, LPX, 1 user, context {context}",
        source=_AA.format(rate=rate),
        group=Group.MEASURED,
        unit="us/token",
        published=1e6 / rate,
        note=note,
        **reading,
    )


@cache
def proxy() -> ModelConfig:
    """The 2T mixture, as a community reconstructed it: gpt-oss-120b with other lengths."""
    small = named_model("gpt-oss-120b")
    assert isinstance(small.attention, GqaConfig)
    assert small.moe is not None
    return replace(
        small,
        name="gpt-oss-2t-proxy",
        n_layers=54,
        d_model=5632,
        d_ff=6656,
        max_position=524_288,
        attention=replace(small.attention, n_heads=128, n_kv_heads=16),
        moe=replace(small.moe, n_experts=328, top_k=16, d_expert=6656),
        sliding_layers=tuple(range(0, 54, 2)),
    )


def proxy_projected(progress: Watcher = lambda *_: None) -> tuple[Figure, ...]:
    """GPT-OSS-2T four ways, one user: GPUs alone, drafts, attention-FFN, prefill and decode."""
    progress(3, 5, "GPT-OSS-2T proxy on GPUs and on LPX racks")
    racks = fewest_racks(
        proxy(), _lpx, PROXY_REQUEST, policy=PROXY_POLICY, progress=progress, most=MOST_LPX_RACKS
    )
    return (
        _projected("NVL72 alone", 1500, "vr-nvl72", "a GPU roofline"),
        Figure(
            **_what("LPX drafts, NVL72 verifies", 2100),
            note="no reading: which model drafts, and how many drafts are accepted, is not public",
        ),
        _projected(
            "attention on NVL72, FFN on LPX",
            3500,
            f"vr-lpx-{racks}:{Split.ATTENTION_FFN}",
            f"the decode step, on {racks} racks beside the GPUs",
        ),
        _projected(
            "prefill on NVL72, decode on LPX",
            7600,
            _lpx(racks),
            f"the decode step alone, on the fewest racks ({racks}) on which a plan of ours fits",
        ),
    )


def _lpx(racks: int) -> str:
    return f"lpx-{racks}"


def _projected(way: str, rate: int, machine: str, note: str) -> Figure:
    asked = scenario(proxy(), machine, PROXY_REQUEST, policy=PROXY_POLICY)
    best = fastest(asked)
    if best is None:
        return Figure(**_what(way, rate), note=f"no reading: no plan of ours fits on {machine}")
    return Figure(
        **_what(way, rate),
        note=f"{note}; {best.name}, context {PROXY_REQUEST.context}, weights {PROXY_POLICY}; the "
        "shape is a community's reconstruction",
        **plan_reading(best, asked, 1e6, chosen=True),
    )


def _what(way: str, rate: int) -> dict[str, Any]:
    return {
        "what": f"GPT-OSS-2T proxy, {way}",
        "source": f"HC26, read off a plot: {rate:,} tokens/s per user",
        "group": Group.PROJECTION,
        "unit": "us/token",
        "published": 1e6 / rate,
    }
