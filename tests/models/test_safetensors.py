"""The safetensors reader against the format's own package, and against bytes laid out by hand."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from safetensors_bytes import NAMES, entry, header_bytes, write, write_arrays

from lpu_jax.errors import WeightsError
from models.weights.safetensors import DTYPES, SafetensorsFile

RNG = np.random.default_rng(0)
#: Types that the format's own NumPy package writes.
COMMON = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8")
COMMON += ("uint64", "uint32", "uint16", "uint8", "bool")


def values(dtype: str, *shape: int) -> np.ndarray:
    """Every bit pattern is as likely as another; NaNs included."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    stored = RNG.integers(0, 2 if dtype == "bool" else 256, count, dtype=np.uint8)
    return stored.view(dtype).reshape(shape)


def test_every_common_type_is_read_as_the_package_wrote_it(tmp_path):
    arrays = {dtype: values(dtype, 3, 2, 5) for dtype in COMMON} | {
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 4), np.float16),
    }
    path = tmp_path / "all.safetensors"
    safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})
    tensors = SafetensorsFile(path)
    assert set(tensors) == set(arrays)
    for name, array in arrays.items():
        found = tensors[name].read()
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"])
def test_eight_bit_floats_are_read_bit_for_bit(tmp_path, dtype):
    every = np.arange(256, dtype=np.uint8).view(dtype)
    found = SafetensorsFile(write_arrays(tmp_path / "f.safetensors", {"a": every}))["a"].read()
    assert found.dtype == np.dtype(getattr(ml_dtypes, dtype))
    np.testing.assert_array_equal(found.view(np.uint8), np.arange(256))


def test_four_bit_floats_have_the_earlier_number_in_the_low_half(tmp_path):
    path = write(tmp_path / "f.safetensors", {"a": ("F4", [2, 2], bytes([0x21, 0xF7]))})
    # e2m1 codes 1, 2, 7, 15 by the table of OCP Microscaling v1.0
    expected = np.array([[0.5, 1.0], [6.0, -6.0]], np.float32)
    np.testing.assert_array_equal(SafetensorsFile(path)["a"].read().astype(np.float32), expected)


def test_rows_are_read_alone(tmp_path):
    array = values("int16", 7, 3)
    file = SafetensorsFile(write_arrays(tmp_path / "f.safetensors", {"z": array[:1], "a": array}))
    some = file["a"].rows(2, 5)
    assert some.shape == (3, 3)
    np.testing.assert_array_equal(some.read(), array[2:5])
    np.testing.assert_array_equal(some.rows(1, 2).read(), array[3:4])
    with pytest.raises(WeightsError, match=r"tensor 'a' .* has no rows 5 to 8"):
        file["a"].rows(5, 8)


def test_a_file_larger_than_memory_costs_only_what_is_read(tmp_path):
    """A sparse file of 64 GiB: its rows exist, its blocks on the disk do not."""
    path, n_rows, n_columns = tmp_path / "huge.safetensors", 1 << 24, 1 << 11
    header = header_bytes({"a": entry("BF16", [n_rows, n_columns], 0, 2 * n_rows * n_columns)})
    path.write_bytes(header)
    with path.open("r+b") as file:
        file.truncate(len(header) + 2 * n_rows * n_columns)
    tracemalloc.start()
    rows = SafetensorsFile(path)["a"].rows(n_rows - 2, n_rows).read()
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows.shape == (2, n_columns)
    assert peak_bytes < 1 << 20
    path.unlink()


def test_a_file_that_shrank_after_it_was_opened_is_refused(tmp_path):
    path = write_arrays(tmp_path / "f.safetensors", {"a": values("float32", 4, 4)})
    tensor = SafetensorsFile(path)["a"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"f\.safetensors: cut short in tensor 'a' since"):
        tensor.read()
    path.unlink()
    with pytest.raises(WeightsError, match=r"f\.safetensors: cannot be read: No such file"):
        tensor.read()


GOOD = {"a": entry("F32", [2], 0, 8), "b": entry("U8", [4], 8, 12)}
BAD_HEADERS = {
    "not JSON": (b'{"a":', "its header is not valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', "its header is not valid JSON: 'utf-8' codec"),
    "not an object": ([1, 2], "its header is not a JSON object"),
    "deep nesting": (b"[" * 100_000, "its header is not valid JSON"),
    "twice": (
        b'{"a":{"dtype":"U8","shape":[12],"data_offsets":[0,12]},'
        b'"a":{"dtype":"U8","shape":[12],"data_offsets":[0,12]}}',
        "'a' occurs twice",
    ),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 12]}}, "tensor 'a' is described by"),
    "an extra key": ({"a": {**entry("U8", [12], 0, 12), "x": 1}}, "tensor 'a' is described by"),
    "not a tensor": ({"a": 3}, "tensor 'a' is described by 3"),
    "unknown type": ({"a": entry("F6_E2M3", [12], 0, 12)}, "'a' has type 'F6_E2M3'; types that"),
    "type of no text": ({"a": entry(5, [12], 0, 12)}, "tensor 'a' has type 5"),
    "negative length": ({"a": entry("U8", [-12], 0, 12)}, r"tensor 'a' has shape \[-12\]"),
    "length true": ({"a": entry("U8", [12, True], 0, 12)}, "tensor 'a' has shape"),
    "too many lengths": ({"a": entry("U8", [12] + [1] * 64, 0, 12)}, "tensor 'a' has shape"),
    "endless": ({"a": entry("U8", [0, 2**59, 2**59], 0, 0)}, "tensor 'a' has shape"),
    "fraction": ({"a": entry("U8", [12.0], 0, 12)}, "tensor 'a' has shape"),
    "one offset": ({"a": {**GOOD["a"], "data_offsets": [0]}}, "tensor 'a' has data_offsets"),
    "backwards": ({"a": entry("U8", [0], 12, 0)}, "tensor 'a' has data_offsets"),
    "too few bytes": (
        {"a": entry("F32", [4], 0, 12)},
        r"tensor 'a' has shape \[4\] of F32 in 12 bytes",
    ),
    "overlap": (
        {"a": entry("U8", [8], 0, 8), "b": entry("U8", [8], 4, 12)},
        "tensor 'b' overlaps the one before it",
    ),
    "hole": (
        {"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 8, 12)},
        "tensor 'b' leaves a hole before it",
    ),
    "beyond the end": ({"a": entry("U8", [13], 0, 13)}, "tensor 'a' ends 1 bytes after the end"),
    "bytes of nobody": ({"a": entry("U8", [8], 0, 8)}, "its tensors end at byte"),
    "half a byte": ({"a": entry("F4", [23], 0, 12)}, r"tensor 'a' has shape \[23\] of F4"),
    "metadata": ({"__metadata__": 3, "a": entry("U8", [12], 0, 12)}, "__metadata__ must be an obj"),
}


@pytest.mark.parametrize("fault", BAD_HEADERS)
def test_a_wrong_header_is_refused_with_file_and_tensor(tmp_path, fault):
    header, message = BAD_HEADERS[fault]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(header_bytes(header) + bytes(12))
    with pytest.raises(WeightsError, match=message) as caught:
        SafetensorsFile(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_the_header_that_the_others_are_variations_of_is_right(tmp_path):
    path = tmp_path / "good.safetensors"
    path.write_bytes(header_bytes(GOOD) + bytes(12))
    assert set(SafetensorsFile(path)) == {"a", "b"}


@pytest.mark.parametrize("size", [0, 7, 8, 9, 40])
def test_a_file_cut_in_its_header_is_refused(tmp_path, size):
    path = tmp_path / "cut.safetensors"
    path.write_bytes((header_bytes(GOOD) + bytes(12))[:size])
    with pytest.raises(WeightsError, match=r"cut\.safetensors: cut short or damaged: a header of"):
        SafetensorsFile(path)


def test_a_header_that_claims_terabytes_is_refused_at_once(tmp_path):
    path = tmp_path / "claims.safetensors"
    path.write_bytes((1 << 42).to_bytes(8, "little") + bytes(100))
    with pytest.raises(WeightsError, match="a header of 4398046511104 bytes does not fit"):
        SafetensorsFile(path)


def test_paths_that_are_no_files_are_refused(tmp_path):
    for path, reason in (
        (tmp_path, "it is a folder"),
        (tmp_path / "absent.safetensors", "there is no such file"),
        ("/dev/null", "it is not a regular file"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(WeightsError, match=f"cannot be read: {reason}"):
            SafetensorsFile(path)
    with pytest.raises(WeightsError, match="a path must have printable characters only"):
        SafetensorsFile("a\x00b")


def test_the_helper_knows_every_type_of_the_reader():
    assert {*NAMES.values(), "F4"} == set(DTYPES)
