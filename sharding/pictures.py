"""What all pictures share: their formats and their bytes.

The same drawing gives the same bytes with the same version of matplotlib, which is loaded only
where something is drawn.
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpu_jax.arguments import described
from lpu_jax.errors import LpuError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
_DOTS_PER_INCH = 160
#: What would differ from one day or version to the next.
_LEFT_OUT: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
}


def picture_format(path: str | Path) -> str:
    """Choose a picture's format by its suffix.

    Returns:
        One of `FORMATS`.

    Raises:
        LpuError: another suffix, or none; what is no path.
    """
    if not isinstance(path, str | Path):
        raise LpuError(f"path is {described(path)}; a plot goes to the path of a file.")
    found = Path(path).suffix.lower().removeprefix(".")
    if found not in FORMATS:
        raise LpuError(f"{path}: a plot must end in .png, .svg or .pdf.")
    return found


def drawn(figure: "Figure", picture: str, dots_per_inch: int = _DOTS_PER_INCH) -> bytes:
    """Draw a figure in one of `FORMATS`; a PNG has so many dots per inch."""
    file = io.BytesIO()
    figure.savefig(file, format=picture, dpi=dots_per_inch, metadata=_LEFT_OUT[picture])
    return file.getvalue()
