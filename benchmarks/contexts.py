"""One user's rate against the context, for models whose layers keep caches, states, or both.

For every context the best plan is searched for anew. Prices of a model of the machine, not
measurements. Run with `python benchmarks/contexts.py`; it draws `docs/images/contexts.png`.
"""

from pathlib import Path

import matplotlib.pyplot as plt
from record import record

from models.zoo import model
from sharding import Request, compare

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "contexts.png"
#: Model, policy, system, marker and what its layers keep; Kimi K3 does not fit nine racks.
MODELS = (
    ("kimi-k2.5", "int4", "lpx-9", "o", "61 layers of latent attention"),
    ("qwen3.5-397b-a17b", "fp8", "lpx-9", "s", "15 of grouped attention, 45 recurrent"),
    ("kimi-linear-48b-a3b", "fp8", "lpx-9", "^", "7 of latent attention, 20 recurrent"),
    ("kimi-k3", "mxfp4 experts", "lpx-20", "D", "24 of latent attention, 69 recurrent"),
)
#: Policies by what the picture calls them, where these are not their names.
POLICIES = {"mxfp4 experts": "released"}
CONTEXTS = (1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20)


def rates(name: str, policy: str, system: str) -> list[dict[str, float | str]]:
    """Find the fastest plan for one sequence at every context that the model has positions for."""
    found: list[dict[str, float | str]] = []
    for context in CONTEXTS:
        if context > model(name).max_position:
            break
        asked = Request(context=context)
        held = POLICIES.get(policy, policy)
        best = compare(name, system, asked, policy=held, top=1).rows[0]
        if not best.fits:
            break
        found.append(
            {
                "context": context,
                "plan": best.plan.name,
                "tokens_per_s_per_user": round(best.tokens_per_s_per_user, 1),
            }
        )
    return found


def draw(curves: dict[str, list[dict[str, float | str]]]) -> None:
    """Draw the curves, readable without colour."""
    figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    for name, policy, system, marker, layers in MODELS:
        points = curves[name]
        axes.plot(
            [point["context"] for point in points],
            [point["tokens_per_s_per_user"] for point in points],
            marker=marker,
            label=f"{name}, {policy}, {system}: {layers}",
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(CONTEXTS, [f"{context // 1024}k" for context in CONTEXTS])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("context, tokens")
    axes.set_ylabel("tokens/s of one user")
    axes.set_title("The fastest plan; modelled, with assumed constants", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(PICTURE, dpi=120)


def main() -> None:
    curves = {name: rates(name, policy, system) for name, policy, system, *_ in MODELS}
    draw(curves)
    systems = {name: system for name, _, system, *_ in MODELS}
    record("contexts", {"systems": systems, "curves": curves})


if __name__ == "__main__":
    main()
