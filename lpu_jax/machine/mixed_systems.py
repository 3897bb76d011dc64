"""Mixed systems by name: machines of GPUs beside racks of the Groq 3 LPX.

Both machines are those of `catalogue`, which makes them; the network is that of the GPUs
(`pool_link.LINKS`). Not modelled: racks that are shared with other machines.
"""

from dataclasses import dataclass

from .series import number_in


@dataclass(frozen=True, kw_only=True)
class MixedSeries:
    """One machine of GPUs beside any number of racks.

    Attributes:
        gpus: name of the machine of GPUs.
        listed: numbers of racks of the systems that the listing shows.
        numbered: how they are called, such as `"vr-lpx-N"`.
        unit: what N counts, in the plural.
    """

    gpus: str
    listed: tuple[int, ...]
    numbered: str
    unit: str = "racks"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the systems that the listing shows."""
        return tuple(self.numbered.removesuffix("N") + str(n_racks) for n_racks in self.listed)


SERIES = (
    # HC26: 256 LPUs pair with 72 Rubin GPUs; nine racks are the longest line that is published.
    MixedSeries(gpus="vr-nvl72", listed=(1, 9), numbered="vr-lpx-N"),
    MixedSeries(gpus="h100x8", listed=(1,), numbered="h100-lpx-N"),
)


def pools_in(name: str) -> tuple[str, str] | None:
    """Find the two machines of a mixed system.

    Args:
        name: name of a system, in lower case.

    Returns:
        Names of the machine of GPUs and of that of LPUs; None if the name is not one of a mixed
        system.
    """
    for series in SERIES:
        n_racks = number_in(name, series.numbered)
        if n_racks is not None:
            return series.gpus, f"lpx-{n_racks}"
    return None
