"""The forms in which released files store a matrix: plain numbers, or codes and scales apart.

Read are e4m3 codes with a scale per 128x128 block (DeepSeek, Kimi K2), per row or per matrix; 4-bit
integers with a scale per group of a row (compressed-tensors, Kimi K2 Thinking and K2.5); MXFP4
(gpt-oss, and that of compressed-tensors, Kimi K3); NVFP4 (NVIDIA ModelOpt). Scales of activations
beside them (`input_scale`, and of cached keys and values `k_scale` and `v_scale`) are known and not
used: policies say how rows and caches are held. Not read: zero points, codes of other widths,
reordered groups; each is refused.

Source: DeepSeek-V3's `inference/kernel.py` (a block times its `weight_scale_inv`);
`pack_to_int32` of vllm-project/compressed-tensors (the earliest code in the lowest bits, codes
counted from -8) and its `unpack_fp4_from_uint8` (the earlier code in the lower bits);
`convert_moe_packed_tensors` in transformers' `integrations/mxfp4.py`;
`ModelOptNvFp4W4A16LinearMethod` in vLLM (what `weight_scale` and `weight_scale_2` are of).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Float32, Int

from lpu_jax.errors import WeightsError
from lpu_jax.numerics.formats import FP16, FP32
from lpu_jax.numerics.schemes import FP8_BLOCK128, FP8_COLUMN, INT4_GROUP32, MXFP4, NVFP4, Scheme

from .stored import Coded, Matrix, float32_values
from .tensor import ArrayTensor, Tensor, quoted, unpacked

#: What follows "weight" in the names of tensors that belong to a quantised matrix `<name>.weight`,
#: and what follows the name of all experts' matrices of a layer.
_COMPANIONS = ("_scale_inv", "_scale", "_scale_2", "_packed", "_shape")
_FUSED = ("_blocks", "_scales")
#: What follows the name of a module: scales of what it is given, and of the cache of what it makes.
_OF_INPUT = "input_scale"
_OF_ROWS = (_OF_INPUT, "k_scale", "v_scale")

_PLAIN = ("float16", "bfloat16", "float32", "float64")
_SCALES = (*_PLAIN, "float8_e8m0fnu")
_FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
_FP8_NAN = 0x7F  #: of either sign; e4m3fn has no infinity
_FP8_BLOCK = 128
_NVFP4_GROUP = 16
_CODES_PER_WORD = 8
_MXFP4_BLOCK_BYTES = 16

#: Values that are checked for NaN at a time.
_CHUNK = 1 << 20


def owner(name: str) -> str:
    """Return the name of the matrix to which a tensor of codes or scales belongs, or its own."""
    module, _, last = name.rpartition(".")
    if last in _OF_ROWS:
        return f"{module}.weight"
    matrix, found, after = name.rpartition(".weight")
    if found and after in _COMPANIONS:
        return f"{matrix}.weight"
    for suffix in _FUSED:
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name


class StoredTensors:
    """Matrices and vectors of a model's files, whatever form they are stored in.

    Every method raises `WeightsError`, naming file and tensor, if a tensor is missing, has another
    shape or type than it must, or, where values are read, holds NaN or infinity.
    """

    def __init__(self, tensors: Mapping[str, Any], where: str) -> None:
        self._tensors = tensors
        self._where = where

    def has(self, name: str) -> bool:
        """Whether a tensor is present in some form."""
        return any(name + form in self._tensors for form in ("", "_packed", "_blocks"))

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Check a tensor and those that belong to it by their shapes and types, reading none."""
        if self._is_packed_mxfp4(name):
            self._packed_mxfp4(name, shape)
        elif f"{name}_packed" in self._tensors:
            self._int4(name, shape)
        elif f"{name}_blocks" in self._tensors:
            self._mxfp4(name, shape)
        elif len(shape) == 2 and self._is_fp8(name):
            self._fp8(name, shape)
        elif len(shape) == 2 and self._is_nvfp4(name):
            self._nvfp4(name, shape)
        else:
            self._plain(name, shape)

    def vector(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Read plain numbers as float32."""
        return float32_values(_finite(self._plain(name, shape), name))

    def matrix(self, name: str, shape: tuple[int, ...]) -> Matrix:
        """Read a matrix `[out, in]`."""
        if self._is_packed_mxfp4(name):
            return self._read_packed_mxfp4(name, shape)
        if f"{name}_packed" in self._tensors:
            return self._read_int4(name, shape)
        if self._is_fp8(name):
            return self._read_fp8(name, shape)
        if self._is_nvfp4(name):
            return self._read_nvfp4(name, shape)
        return _finite(self._plain(name, shape), name)

    def rows(
        self, name: str, shape: tuple[int, ...], numbers: Int[np.ndarray, " n"]
    ) -> Float32[np.ndarray, "n columns"]:
        """Read some rows of a matrix as float32; of plain numbers, runs of neighbours at once."""
        is_coded = self._is_fp8(name) or self._is_nvfp4(name)
        if is_coded or f"{name}_packed" in self._tensors:
            chosen: np.ndarray = float32_values(self.matrix(name, shape))[numbers]
            return chosen
        tensor = self._plain(name, shape)
        runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
        found = [_finite(tensor.rows(int(run[0]), int(run[-1]) + 1), name) for run in runs]
        return float32_values(np.concatenate(found))

    def fused_matrix(
        self, name: str, shape: tuple[int, ...], index: int, *, is_turned: bool = False
    ) -> Matrix:
        """Read one of the matrices `[in, out]` that lie in one tensor, as `[out, in]`.

        If `is_turned`, plain ones lie as `[out, in]`.
        """
        if f"{name}_blocks" not in self._tensors:
            plain: np.ndarray = _finite(self._plain(name, shape).rows(index, index + 1), name)
            turned: np.ndarray = plain[0] if is_turned else plain[0].T
            return turned
        blocks, scales = (t.rows(index, index + 1) for t in self._mxfp4(name, shape))
        codes = unpacked(blocks.read().reshape(shape[2], -1))
        scale_codes = scales.read()[0].view(np.uint8)
        _refuse_scales(scale_codes.view(ml_dtypes.float8_e8m0fnu), MXFP4, scales, f"{name}_scales")
        return Coded(codes=codes[:, : shape[1]], scales=scale_codes, scheme=MXFP4)

    def fused_vector(self, name: str, shape: tuple[int, ...], index: int) -> np.ndarray:
        """Read one of the vectors that lie in one tensor, as float32."""
        return float32_values(_finite(self._plain(name, shape).rows(index, index + 1), name)[0])

    # Each of the next five finds a form's tensors and checks their shapes and types.

    def _plain(self, name: str, shape: tuple[int, ...]) -> Tensor:
        self._refuse_beside(name, _COMPANIONS)
        if name.endswith(".weight"):
            self._refuse_beside(name.removesuffix("weight"), (_OF_INPUT,), name)
        return self._find(name, shape, _PLAIN)

    def _fp8(self, name: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, str]:
        """Return codes, scales and the suffix of the scales' name."""
        codes = self._find(name, shape, (_FP8.name,))
        self._refuse_beside(name, ("_packed", "_shape", "_scale_2"))
        self._check_scales_of_rows(name)
        if f"{name}_scale" not in self._tensors:
            blocks = tuple(-(-length // _FP8_BLOCK) for length in shape)
            return codes, self._find(f"{name}_scale_inv", blocks, _SCALES), "_scale_inv"
        self._refuse_beside(name, ("_scale_inv",))
        given = self._tensor(f"{name}_scale").shape
        allowed = given if given in ((), (1,)) else (shape[0], 1)
        return codes, self._find(f"{name}_scale", allowed, _SCALES), "_scale"

    def _int4(self, name: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        self._refuse_beside(name, ("", "_scale_inv", "_scale_2"), f"{name}_packed")
        rows, columns = shape
        words = -(-columns // _CODES_PER_WORD)
        packed = self._find(f"{name}_packed", (rows, words), ("int32",))
        scale_name = f"{name}_scale"
        groups = self._tensor(scale_name).shape[-1:] or (1,)
        scales = self._find(scale_name, (rows, *groups), _PLAIN)
        if not groups[0] or columns % groups[0]:
            raise WeightsError(
                f"{scales.where}: tensor {quoted(scale_name)} has {groups[0]} scales per row, "
                f"which do not divide its {columns} values."
            )
        self._find(f"{name}_shape", (2,), ("int32", "int64"))
        return packed, scales

    def _nvfp4(self, name: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes, scales of groups of a row, and the scale of the matrix."""
        self._refuse_beside(name, ("_packed", "_shape", "_scale_inv"))
        self._check_scales_of_rows(name)
        rows, columns = shape
        codes = self._find(name, (rows, -(-columns // 2)), ("uint8",))
        groups = (rows, -(-columns // _NVFP4_GROUP))
        scales = self._find(f"{name}_scale", groups, (_FP8.name,))
        return codes, scales, self._one_number(f"{name}_scale_2")

    def _mxfp4(self, name: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        self._refuse_beside(name, ("",), f"{name}_blocks")
        matrices, rows, columns = shape
        groups = (matrices, columns, -(-rows // 32))
        blocks = self._find(f"{name}_blocks", (*groups, _MXFP4_BLOCK_BYTES), ("uint8",))
        return blocks, self._find(f"{name}_scales", groups, ("uint8", "float8_e8m0fnu"))

    def _packed_mxfp4(self, name: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return codes, two in a byte along a row, and the scales of its blocks."""
        beside = ("", "_scale_inv", "_scale_2", "_shape")
        self._refuse_beside(name, beside, f"{name}_packed")
        rows, columns = shape
        packed = self._find(f"{name}_packed", (rows, -(-columns // 2)), ("uint8",))
        blocks = (rows, -(-columns // MXFP4.row_granule))
        return packed, self._find(f"{name}_scale", blocks, ("uint8", "float8_e8m0fnu"))

    def _read_fp8(self, name: str, shape: tuple[int, ...]) -> Matrix:
        codes, scales, suffix = self._fp8(name, shape)
        values = codes.read()
        if (values.view(np.uint8) & _FP8_NAN == _FP8_NAN).any():
            raise _not_finite(codes, name)
        factors = scales.read().astype(np.float32)
        _refuse_scales(factors, FP8_BLOCK128, scales, name + suffix)
        if suffix == "_scale_inv":
            of_rows = np.repeat(factors, _FP8_BLOCK, axis=0)[: shape[0]]
            return Coded(codes=values, scales=of_rows, scheme=FP8_BLOCK128)
        of_each_row = np.broadcast_to(factors.reshape(-1, 1), (shape[0], 1))
        return Coded(codes=values, scales=np.ascontiguousarray(of_each_row), scheme=FP8_COLUMN)

    def _read_nvfp4(self, name: str, shape: tuple[int, ...]) -> Matrix:
        packed, scales, scale = self._nvfp4(name, shape)
        factors, factor = scales.read(), np.float32(scale.read().reshape(()))
        _refuse_scales(factors, NVFP4, scales, f"{name}_scale")
        with np.errstate(over="ignore", invalid="ignore"):
            _refuse_scales(factors.astype(np.float32) * factor, NVFP4, scale, f"{name}_scale_2")
        codes = unpacked(packed.read())[:, : shape[1]]
        return Coded(codes=codes, scales=factors, scheme=NVFP4, tensor_scale=float(factor))

    def _read_int4(self, name: str, shape: tuple[int, ...]) -> Matrix:
        packed, scales = self._int4(name, shape)
        shape_tensor = self._tensor(f"{name}_shape")
        told = tuple(int(length) for length in shape_tensor.read())
        if told != shape:
            raise WeightsError(
                f"{shape_tensor.where}: tensor {quoted(f'{name}_shape')} must hold {shape}, got "
                f"{told}."
            )
        words = packed.read()  # the bytes of a word from its lowest bits on: little-endian
        codes = unpacked(words.view(np.uint8)).view(np.int8)[:, : shape[1]] - np.int8(8)
        factors = scales.read()
        scheme = replace(INT4_GROUP32, block_rows=shape[1] // factors.shape[1])
        as_bf16 = factors.astype(ml_dtypes.bfloat16)
        if np.array_equal(as_bf16.astype(np.float32), factors.astype(np.float32)):
            factors = as_bf16
        else:
            factors = factors if factors.dtype == np.float16 else factors.astype(np.float32)
            scheme = replace(scheme, scale_format=FP16 if factors.itemsize == 2 else FP32)
        _refuse_scales(factors, scheme, scales, f"{name}_scale")
        return Coded(codes=codes, scales=factors, scheme=scheme)

    def _read_packed_mxfp4(self, name: str, shape: tuple[int, ...]) -> Matrix:
        packed, scales = self._packed_mxfp4(name, shape)
        codes, scale_codes = unpacked(packed.read()), scales.read().view(np.uint8)
        _refuse_scales(scale_codes.view(ml_dtypes.float8_e8m0fnu), MXFP4, scales, f"{name}_scale")
        return Coded(codes=codes[:, : shape[1]], scales=scale_codes, scheme=MXFP4)

    def _refuse_beside(self, name: str, suffixes: tuple[str, ...], given: str = "") -> None:
        """Refuse tensors that contradict the form in which a matrix is stored."""
        for suffix in suffixes:
            if name + suffix in self._tensors:
                where = self._tensor(name + suffix).where
                raise WeightsError(
                    f"{where}: tensor {quoted(name + suffix)} does not go with "
                    f"{quoted(given or name)}, which is stored in another form."
                )

    def _is_nvfp4(self, name: str) -> bool:
        has_scales = any(f"{name}{suffix}" in self._tensors for suffix in ("_scale", "_scale_2"))
        return has_scales and name in self._tensors and self._tensor(name).dtype == np.uint8

    def _one_number(self, name: str) -> Tensor:
        """Find a tensor of one number in float32."""
        given = self._tensor(name).shape
        return self._find(name, given if given in ((), (1,)) else (), ("float32",))

    def _check_scales_of_rows(self, name: str) -> None:
        """Check the scale of what a narrow matrix is given, if it has one."""
        if (of_input := name.removesuffix("weight") + _OF_INPUT) in self._tensors:
            self._one_number(of_input)

    def _is_packed_mxfp4(self, name: str) -> bool:
        packed = f"{name}_packed"
        return packed in self._tensors and self._tensor(packed).dtype == np.uint8

    def _is_fp8(self, name: str) -> bool:
        return name in self._tensors and self._tensor(name).dtype == _FP8

    def _tensor(self, name: str) -> Tensor:
        try:
            tensor = self._tensors[name]
        except KeyError:
            raise WeightsError(f"{self._where}: tensor {quoted(name)} is missing.") from None
        if isinstance(tensor, np.ndarray):
            return ArrayTensor(where=self._where, array=tensor)
        found: Tensor = tensor
        return found

    def _find(self, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> Tensor:
        """Return a tensor, or say exactly what is wrong with it."""
        tensor = self._tensor(name)
        if tensor.shape != shape:
            raise WeightsError(
                f"{tensor.where}: tensor {quoted(name)} must have shape {shape}, got "
                f"{tensor.shape}."
            )
        if tensor.dtype.name not in dtypes:
            allowed = " or ".join((", ".join(dtypes[:-1]), dtypes[-1])) if dtypes[1:] else dtypes[0]
            raise WeightsError(
                f"{tensor.where}: tensor {quoted(name)} must be {allowed}, got {tensor.dtype.name}."
            )
        return tensor


def _finite(tensor: Tensor, name: str) -> np.ndarray:
    """Read a tensor whose values must be finite in float32."""
    values = tensor.read()
    flat = values.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        with np.errstate(over="ignore"):  # of float64
            chunk = flat[start : start + _CHUNK].astype(np.float32)
        if not np.isfinite(chunk).all():
            raise _not_finite(tensor, name)
    return values


def _refuse_scales(factors: np.ndarray, scheme: Scheme, tensor: Tensor, name: str) -> None:
    """Refuse scales that are NaN or infinite, or make the largest code so."""
    largest = np.float32(scheme.format.max_value + scheme.format.is_integer)  # -8 of int4
    with np.errstate(over="ignore", invalid="ignore"):
        if not np.isfinite(factors.astype(np.float32) * largest).all():
            raise _not_finite(tensor, name)


def _not_finite(tensor: Tensor, name: str) -> WeightsError:
    return WeightsError(f"{tensor.where}: tensor {quoted(name)} holds NaN or infinity.")
