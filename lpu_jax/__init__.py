"""The machine: an LPU chip, its units, its links, what they compute and what they cost.

Machines are found by name (`system`), programs are written with the units (`mxm`, `vxm`, `sxm`,
`mem`, `c2c`), run on a mesh of chips (`mesh`) and timed (`cost`).
"""

from typing import TYPE_CHECKING

from .packages import exports

if TYPE_CHECKING:
    from importlib.metadata import version

    from . import cost, mesh
    from .datapath import c2c, mem, mxm, sxm, vxm
    from .datapath.dot_general import MxmDotGeneral
    from .errors import LpuError
    from .machine.catalogue import named_systems, system
    from .machine.chip import ChipSpec
    from .machine.lpu_chips import GROQ3_LPU, GROQCHIP1
    from .machine.system import System
    from .numerics.formats import FORMATS, Format
    from .numerics.quantized import QuantizedArray
    from .numerics.schemes import SCHEMES, Scheme

    __version__ = version("lpu-jax")

__all__ = [
    "FORMATS",
    "GROQ3_LPU",
    "GROQCHIP1",
    "SCHEMES",
    "ChipSpec",
    "Format",
    "LpuError",
    "MxmDotGeneral",
    "QuantizedArray",
    "Scheme",
    "System",
    "__version__",
    "c2c",
    "cost",
    "mem",
    "mesh",
    "mxm",
    "named_systems",
    "sxm",
    "system",
    "vxm",
]

__getattr__, __dir__ = exports(
    __name__,
    {
        "FORMATS": "numerics.formats",
        "GROQ3_LPU": "machine.lpu_chips",
        "GROQCHIP1": "machine.lpu_chips",
        "SCHEMES": "numerics.schemes",
        "ChipSpec": "machine.chip",
        "Format": "numerics.formats",
        "LpuError": "errors",
        "MxmDotGeneral": "datapath.dot_general",
        "QuantizedArray": "numerics.quantized",
        "Scheme": "numerics.schemes",
        "System": "machine.system",
        "named_systems": "machine.catalogue",
        "system": "machine.catalogue",
    },
    modules={
        "c2c": "datapath.c2c",
        "cost": "cost",
        "mem": "datapath.mem",
        "mesh": "mesh",
        "mxm": "datapath.mxm",
        "sxm": "datapath.sxm",
        "vxm": "datapath.vxm",
    },
)
