"""A mixed system: one machine of GPUs, one of LPUs, the network between them, and who does what.

Each stays a `System` of its own, with chips, links and numbers; names are in `mixed_systems`, files
in `mixed_file`. Not modelled: more than two machines, and two of one kind.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, final

from ..arguments import described
from ..errors import ConfigError, PlanError
from ..provenance import Constant, constants_of
from .pool_link import PoolLink
from .system import System


class Split(StrEnum):
    """Who does what for a model on a mixed system."""

    #: embedding, attention with its cache and head on the GPUs; dense MLPs and experts on the LPUs
    ATTENTION_FFN = "attention-ffn"
    #: prompts are taken in on the GPUs, which hand the cache over; the LPUs decode
    PREFILL_DECODE = "prefill-decode"
    #: a draft model on the LPUs; the model itself on the GPUs
    DRAFT_VERIFY = "draft-verify"


@final
@dataclass(frozen=True, kw_only=True)
class MixedSystem:
    """GPUs beside LPUs: a plan may put one pool of blocks on each.

    Attributes:
        name: how it was asked for.
        gpus: the machine of GPUs.
        lpus: the machine of LPUs.
        link: the network between them.
        split: what each of them does.
    """

    #: The two pools, in the order in which they are listed and drawn.
    POOLS: ClassVar[tuple[str, str]] = ("gpus", "lpus")

    name: str
    gpus: System
    lpus: System
    link: PoolLink
    split: Split = Split.ATTENTION_FFN

    def __post_init__(self) -> None:
        """Refuse what is not one machine of each kind, and LPUs without a lane for the network.

        Raises:
            ConfigError: a field of another type, or a machine of the other kind.
            PlanError: the lanes of an LPU do not suffice.
        """
        splits = f"a Split: {', '.join(Split)}"
        kinds = {
            "name": (str, "a string"),
            "link": (PoolLink, "a PoolLink"),
            "split": (Split, splits),
        }
        for pool in self.POOLS:
            kinds[pool] = (System, f"a System of {pool.upper()[:-1]}s")
        for name, (kind, allowed) in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise ConfigError(
                    f"MixedSystem.{name} is {described(getattr(self, name))}; it must be {allowed}."
                )
        if self.gpus.gpus is None or self.lpus.lpus is None:
            pool, other = ("gpus", "LPUs") if self.gpus.gpus is None else ("lpus", "GPUs")
            raise ConfigError(
                f"MixedSystem.{pool} is {getattr(self, pool).name}, which is made of {other}; a "
                "mixed system is one machine of GPUs and one of LPUs."
            )
        if self.lpus.dram is not None:
            raise ConfigError(
                f"MixedSystem.lpus is {self.lpus.name}, whose caches lie in DRAM; beside GPUs "
                "those of LPUs are in SRAM."
            )
        self._check_lanes()

    def _check_lanes(self) -> None:
        assert self.lpus.lpus is not None
        chip, links = self.lpus.lpus
        if links.lanes_per_chip + self.link.lpu_lanes > chip.c2c_lanes:
            raise PlanError(
                f"the links need {links.lanes_per_chip} lanes of a chip ({links.lanes_in_words}) "
                f"and the network {self.link.lpu_lanes}; {chip.name} has {chip.c2c_lanes}"
            )

    def split_as(self, split: Split) -> "MixedSystem":
        """Take the same machines for a split, whose name is added: `vr-lpx-9:prefill-decode`."""
        name = self.name.removesuffix(f":{self.split}")
        return dataclasses.replace(self, split=split, name=f"{name}:{split}")

    @property
    def is_chosen(self) -> bool:
        """Whether its split was chosen (`split_as`)."""
        return self.name.endswith(f":{self.split}")

    @property
    def pools(self) -> Mapping[str, System]:
        """Both machines by name of the pool, in order."""
        return {pool: getattr(self, pool) for pool in self.POOLS}

    @property
    def n_chips(self) -> int:
        """Chips of both machines together."""
        return self.gpus.n_chips + self.lpus.n_chips

    @property
    def memory_bytes(self) -> int:
        """Memory of all chips together, without the DRAM beside the LPUs."""
        return self.gpus.memory_bytes + self.lpus.memory_bytes

    @property
    def memory_name(self) -> str:
        """What their memory is called."""
        return f"{self.gpus.memory_name} and {self.lpus.memory_name}"

    @property
    def title(self) -> str:
        """How many of which chips."""
        return f"{self.gpus.title} and {self.lpus.title}"

    @property
    def dram_bytes(self) -> int:
        """DRAM beside the LPUs, all together."""
        return int(self.link.dram_bytes_of(self.lpus.n_chips))

    @property
    def note(self) -> str:
        """What its numbers are."""
        return f"{self.gpus.chip.note} {self.lpus.name} has a static schedule."

    @property
    def parts(self) -> Mapping[str, Any]:
        """What has its constants, by name, such as `gpus.chip`; the network is `link`."""
        of_pools = {
            f"{pool}.{part}": spec
            for pool, system in self.pools.items()
            for part, spec in system.parts.items()
        }
        return of_pools | {"link": self.link}

    def with_parts(self, change: Callable[[str, Any], Any]) -> "MixedSystem":
        """Replace each part by what `change` makes of its name and of it, the network last."""

        def of_pool(pool: str) -> System:
            system: System = getattr(self, pool)
            return system.with_parts(lambda part, spec: change(f"{pool}.{part}", spec))

        gpus, lpus = map(of_pool, self.POOLS)
        return dataclasses.replace(self, gpus=gpus, lpus=lpus, link=change("link", self.link))

    def constants(self) -> tuple[Constant, ...]:
        """List every number of both machines and of the network with its provenance.

        Returns:
            Constants by full name, such as `link.latency_s`, in the order of the parts.
        """
        return tuple(
            dataclasses.replace(constant, name=f"{part}.{constant.name}")
            for part, spec in self.parts.items()
            for constant in constants_of(spec)
        )


#: What can be named or read from a file.
Machine = System | MixedSystem
