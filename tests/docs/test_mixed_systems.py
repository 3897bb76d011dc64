"""The table of the network in `docs/systems.md`: its numbers are those of the code."""

import re
from pathlib import Path

from lpu_jax.machine.catalogue import any_system
from lpu_jax.machine.mixed import MixedSystem
from lpu_jax.machine.pool_link import LINKS
from lpu_jax.provenance import Constant, constants_of
from lpu_jax.quantities import format_quantity

PAGE = Path(__file__).parents[2] / "docs" / "systems.md"
_, SECTION = PAGE.read_text(encoding="utf-8").split("## Mixed systems\n")
SECTION = SECTION.split("\n## ")[0]


def _row(name: str, constant: Constant) -> tuple[str, ...]:
    def written(value: object) -> str:
        assert isinstance(value, int | float)
        return format_quantity(value, constant.unit)

    ends = ", ".join(constant.options)
    if constant.low is not None:
        ends = f"{written(constant.low)} to {written(constant.high)}"
    value = constant.value if constant.options else written(constant.value)
    return name, str(value), constant.status, ends


def test_the_table_has_every_constant_of_the_network() -> None:
    rows = [tuple(map(str.strip, line.split("|")[1:5])) for line in SECTION.splitlines()]
    printed = [(row[0].strip("`"), *row[1:]) for row in rows if row and row[0].startswith("`")]
    expected = []
    for constant in constants_of(LINKS["rubin"]):
        expected.append(_row(constant.name, constant))
        if constant.name == "gpu_port_bytes_per_s":
            for gpu in ("h100", "gb200"):
                (other,) = (c for c in constants_of(LINKS[gpu]) if c.name == constant.name)
                expected.append(_row(gpu, other))
    assert printed == expected


def test_the_file_of_the_page_is_a_mixed_system(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```toml\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)
    path = tmp_path / "page.toml"
    path.write_text(text, encoding="utf-8")
    found = any_system(path)
    assert isinstance(found, MixedSystem)
    assert (found.link.gpu_port_bytes_per_s, found.link.latency_s) == (100e9, 5e-6)
