"""Safetensors files written byte by byte, so that they can be wrong in every way."""

import json
from pathlib import Path

import numpy as np


def header_bytes(header: object) -> bytes:
    """A header with its length before it; bytes are taken as they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


def entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def write(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> Path:
    """Write tensors given as type, shape and bytes, one after the other."""
    header, data = {}, b""
    for name, (dtype, shape, stored) in tensors.items():
        header[name] = entry(dtype, shape, len(data), len(data) + len(stored))
        data += stored
    path.write_bytes(header_bytes(header) + data)
    return path


#: The format's names of NumPy's and ml_dtypes' types.
NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """Write arrays of any type; the `safetensors` package refuses those of 8-bit floats."""
    return write(
        path,
        {
            name: (NAMES[array.dtype.name], list(array.shape), array.tobytes())
            for name, array in arrays.items()
        },
    )
