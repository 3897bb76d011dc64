"""A series of systems: one chip, in machines of stated names or of any size.

A new chip, or a new machine of it, is a series in `lpu_systems` or `gpu_systems`: names, listings
and users' files then know it. Machines of two kinds of chips are in `mixed_systems`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .gpu import Accelerator
from .system import Fabric
from .tray_dram import TrayDram


@dataclass(frozen=True, kw_only=True)
class Series:
    """Systems of one chip.

    Attributes:
        chip: the chip.
        named: links of the systems that the listing shows, by name.
        numbered: how systems of other sizes are called, such as `"groq-N"`.
        unit: what N counts, in the plural.
        of_size: links of a system of N; refuses a size that does not exist.
        dram: DRAM beside the chips, in which systems whose name ends in `-dram` have their caches;
            None: there are none.
    """

    chip: Accelerator
    named: Mapping[str, Fabric]
    numbered: str
    unit: str
    of_size: Callable[[int], Fabric]
    dram: TrayDram | None = None

    def links(self, name: str) -> Fabric | None:
        """Find the links of a system.

        Args:
            name: name of a system.

        Returns:
            Its links; None if the name is not of this series.

        Raises:
            PlanError: the name is of this form, but there is no such size.
        """
        if name in self.named:
            return self.named[name]
        size = number_in(name, self.numbered)
        return None if size is None else self.of_size(size)


def number_in(name: str, numbered: str) -> int | None:
    """Read N from a name such as `"groq-N"`; None if the name is not of this form.

    Example:
        >>> number_in("lpx-9", "lpx-N"), number_in("lpx-rack", "lpx-N")
        (9, None)
    """
    match = re.fullmatch(rf"{re.escape(numbered.removesuffix('N'))}([1-9][0-9]{{0,8}})", name)
    return None if match is None else int(match[1])
