"""Tensor-core products by `mmasim`, the public model: `python mmasim_products.py IN.npz OUT.npz`.

IN holds the arrays of `tensor_core_blocks.operands`, as `INDEX.NAME`; `INDEX` counts `CASES`, a dot
and anything. OUT has the bits of each `D`. Needs the dependency group `oracle`. mmasim states no
licence; it is installed and called, and nothing of it is kept here.
"""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mmasim.nv_ptx.sim import WGMMA, TCGen05MMA, TCGen05MMABlockScale
from tensor_core_blocks import CASES, STEPS

_TORCH = {
    "float16": (torch.float16, "f16"),
    "bfloat16": (torch.bfloat16, "bf16"),
    "float8_e4m3fn": (torch.float8_e4m3fn, "e4m3"),
    "float8_e5m2": (torch.float8_e5m2, "e5m2"),
    "e3m2": (None, "e3m2"),
    "e2m3": (None, "e2m3"),
    "e2m1": (None, "e2m1"),
}


def product(case: tuple[str, str, str, str], made: Mapping[str, Any]) -> Any:
    """Return the bits of `A @ B + C`."""
    kind, generation, of_a, of_b = case
    a, b = _tensor(made["a"], of_a, kind), _tensor(made["b"].T, of_b, kind).T
    c = torch.from_numpy(made["c"].view(np.int32)).view(torch.float32)
    operation = _operation(kind, generation, _TORCH[of_a][1], _TORCH[of_b][1])
    if "a_scales" not in made:
        return _bits(operation(a, b, c))
    dtype = torch.float8_e4m3fn if kind == "nvfp4" else torch.float8_e8m0fnu
    scales = [torch.from_numpy(made[f"{side}_scales"]).view(dtype) for side in "ab"]
    step = STEPS[kind]
    per_step = scales[0].shape[1] * step // made["a"].shape[1]
    packed = 2 if kind in ("mxfp4", "nvfp4") else 1
    for i in range(made["a"].shape[1] // step):  # an instruction is one step
        k = slice(i * step // packed, (i + 1) * step // packed)
        s = slice(i * per_step, (i + 1) * per_step)
        c = operation(a[:, k], b[k], c, scales[0][:, s], scales[1][s])
    return _bits(c)


def _bits(d: torch.Tensor) -> Any:
    return d.contiguous().view(torch.int32).numpy().view(np.uint32)


def _tensor(codes: Any, element: str, kind: str) -> torch.Tensor:
    dtype = _TORCH[element][0]
    codes = np.ascontiguousarray(codes)
    if dtype is not None:
        return torch.from_numpy(codes.view(f"i{codes.itemsize}")).view(dtype)
    if kind in ("mxfp4", "nvfp4"):  # two codes a byte, the first in the upper half
        return torch.from_numpy(codes[..., 0::2] << 4 | codes[..., 1::2])
    return torch.from_numpy(codes << 2 if element == "e2m1" else codes)


def _operation(kind: str, generation: str, of_a: str, of_b: str) -> Any:
    if kind == "nvfp4":
        return TCGen05MMABlockScale(
            "Blackwell", "m128n8k64.kind::mxf4nvf4.block16.f32.e2m1.e2m1.ue4m3"
        )
    if kind == "mxfp4":
        return TCGen05MMABlockScale("Blackwell", "m128n8k64.kind::mxf4.block32.f32.e2m1.e2m1.ue8m0")
    if kind == "mxfp8":
        name = f"m128n8k32.kind::mxf8f6f4.block32.f32.{of_a}.{of_b}.ue8m0"
        return TCGen05MMABlockScale("Blackwell", name)
    k = STEPS[kind]
    if generation == "hopper":
        return WGMMA("Hopper", f"m64n8k{k}.f32.{of_a}.{of_b}")
    family = "f8f6f4" if kind == "fp8" else "f16"
    return TCGen05MMA("Blackwell", f"m64n8k{k}.kind::{family}.f32.{of_a}.{of_b}")


def products(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return `INDEX.d` for every `INDEX` of the given arrays."""
    indices = sorted({key.rpartition(".")[0] for key in given})
    results = {}
    for index in indices:
        prefix = f"{index}."
        made = {key[len(prefix) :]: given[key] for key in given if key.startswith(prefix)}
        results[f"{index}.d"] = product(CASES[int(index.partition(".")[0])], made)
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    with np.load(sys.argv[1]) as given:
        np.savez(sys.argv[2], **products(dict(given)))
