"""What makes up a difference of more than a factor of 2 between a published figure and ours.

Where ours is the longer time, some of our terms must be wrong or avoidable; where it is the
shorter, something takes part that we do not count, or constants are worse than we assume. Not
modelled: what that is; no public source describes a served model's plan, batch or drafts.
"""

from collections.abc import Sequence

from .. import report
from .figures import EXPLAINED_FACTOR, Figure, number


def differences_text(figures: Sequence[Figure]) -> str:
    """Explain every figure from which ours differs by more than a factor of 2, as text."""
    parts = [difference_text(figure) for figure in figures if figure.differs]
    head = f"Differences of more than {EXPLAINED_FACTOR:g}"
    return "\n\n".join([f"{head}: {len(parts)} of {len(figures)} figures.", *parts])


def difference_text(figure: Figure) -> str:
    """Explain one figure: our terms, largest first, the bound, and what must be different."""
    assert figure.ours is not None
    made = report.table(
        ("term", "left"),
        (figure.unit, "right"),
        ("of ours", "right"),
        ("of published", "right"),
        title=f"{figure.what}: published {number(figure.published)}, ours {number(figure.ours)} "
        f"{figure.unit}, {figure.ratio:.2f} times",
    )
    for name, value in figure.terms.items():
        if value:
            share, of_published = value / figure.ours, value / figure.published
            made.add_row(name, f"{value:.4g}", f"{share:.1%}", f"{of_published:.1%}")
    lines = [*_bound_line(figure), *_range_line(figure), _verdict(figure)]
    return report.render(*([made] if figure.terms else [made.title or ""]), *lines)


def _bound_line(figure: Figure) -> list[str]:
    if figure.bound is None:
        return []
    bound = f"{number(figure.bound)} {figure.unit}"
    return [f"Cannot be beaten at the nominal constants: {bound}, {figure.bound_of}."]


def _range_line(figure: Figure) -> list[str]:
    if figure.ours_range is None:
        return []
    low, high = (number(value) for value in figure.ours_range)
    where = "outside" if figure.is_outside else "inside"
    where += ": a finding" if figure.is_finding else ""
    return [f"Over the uncertain constants: {low}..{high}; the published figure is {where}."]


def _verdict(figure: Figure) -> str:
    """Which terms are more than the published figure leaves room for, or how much is missing."""
    assert figure.ours is not None
    if figure.ours < figure.published:
        missing = figure.published - figure.ours
        text = (
            f"All our terms together are {figure.ours / figure.published:.0%} of the published "
            f"figure: {number(missing)} {figure.unit} are in none of them."
        )
        if figure.ours_range is not None:
            reached = min(figure.ours_range[1], figure.published) - figure.ours
            text += f" Unfavourable constants make up {reached / missing:.0%} of that."
        return text
    left, named = figure.ours, []
    for name, value in figure.terms.items():
        if left <= EXPLAINED_FACTOR * figure.published:
            break
        left -= value
        named.append(name)
    if not named:
        return "Nothing that we count apart makes it up."
    return (
        f"Made up by {', '.join(named)}: without them ours would be {number(left)} {figure.unit}, "
        f"{left / figure.published:.2f} times the published figure."
    )
