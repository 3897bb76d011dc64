"""What cannot be saved or restored is refused in one sentence, and leaves everything as it was."""

import json
from dataclasses import replace

import numpy as np
import pytest
from placed_blocks import TINY_LLAMA, plan
from saved_states import DECODE, FP16, STORED, UNEVEN_KIMI, filled_cache, state_of, stored_blocks
from small_machines import NODE

from lpu_jax.errors import PlanError, WeightsError
from models.policy import POLICIES
from models.weights.synthetic import SyntheticWeights
from sharding.request import Request
from sharding.run.load import place_block, store_block
from sharding.run.saved import read_state, restore_state, save_state
from sharding.run.unplaced import block_state, restored_block


def saved(folder, **rest):
    save_state(folder, state_of(TINY_LLAMA, "fp16", stored_blocks(layers=2), **rest))
    return folder


def test_a_folder_may_be_moved(tmp_path):
    """A model without a name of its own is called by its folder."""
    moved = replace(TINY_LLAMA, name="elsewhere")
    _, state = read_state(saved(tmp_path), moved, policy=FP16)
    assert len(list(state.blocks)) == 2


def test_another_model_or_policy_is_refused_by_the_value_that_differs(tmp_path):
    saved(tmp_path)
    with pytest.raises(WeightsError, match=r"with another model: model\.d_ff was 240 and is 241\."):
        read_state(tmp_path, replace(TINY_LLAMA, d_ff=241), policy=FP16)
    with pytest.raises(WeightsError, match=r"with another policy: policy\.\w+"):
        restore_state(
            tmp_path,
            TINY_LLAMA,
            NODE,
            plan("dense", tensor=2),
            DECODE,
            policy=POLICIES["int8"],
        )


def test_folders_without_a_state_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="absent holds no saved state"):
        read_state(tmp_path / "absent", TINY_LLAMA, policy=FP16)
    assert not (tmp_path / "absent").exists()
    (tmp_path / "3").mkdir()
    (tmp_path / "notes.txt").write_text("not ours")
    with pytest.raises(WeightsError, match="holds no saved state"):
        read_state(tmp_path, TINY_LLAMA, policy=FP16)
    with pytest.raises(WeightsError, match=r"notes\.txt is a file; a state is saved in a folder"):
        save_state(tmp_path / "notes.txt", state_of(TINY_LLAMA, "fp16", stored_blocks()))
    with pytest.raises(WeightsError, match=r"notes\.txt holds no saved state"):
        read_state(tmp_path / "notes.txt", TINY_LLAMA, policy=FP16)


def test_a_missing_block_is_named_before_anything_is_read(tmp_path):
    saved(tmp_path)
    (item,) = tmp_path.rglob("0001-dense-1")
    item.rename(tmp_path / "elsewhere")
    with pytest.raises(WeightsError, match=r"step 0 of .*: 0001-dense-1 is missing"):
        read_state(tmp_path, TINY_LLAMA, policy=FP16)


def test_a_changed_description_is_refused(tmp_path):
    saved(tmp_path, positions=np.asarray([3], np.int32))
    (path,) = tmp_path.rglob("contents.json")
    contents = json.loads(path.read_text())
    contents["description"]["positions"] = [4]
    path.write_text(json.dumps(contents))
    with pytest.raises(WeightsError, match=r"step 0 of .*: contents\.json is damaged"):
        read_state(tmp_path, TINY_LLAMA, policy=FP16)
    for text in ("{", "[]", "3", '{"sha256": "0"}'):
        path.write_text(text)
        with pytest.raises(WeightsError, match=r"contents\.json is not that of a saved state"):
            read_state(tmp_path, TINY_LLAMA, policy=FP16)


def test_any_changed_or_lost_file_of_a_block_is_named(tmp_path):
    """Before Orbax reads any of it: never other values, never another exception."""
    folder = saved(tmp_path / "state")
    files = sorted(p for p in folder.rglob("*") if p.is_file() and "0000-dense-0" in str(p))
    assert len(files) > 3

    def refused(path):
        _, state = read_state(folder, TINY_LLAMA, policy=FP16)
        with pytest.raises(WeightsError, match=rf"0000-dense-0 is damaged: .*{path.name}\.$"):
            next(iter(state.blocks))

    for path in files:
        whole = path.read_bytes()
        for at in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
            refused(path)
        path.write_bytes(whole[:-1])
        refused(path)
        path.unlink()
        refused(path)
        path.write_bytes(whole)
    _, state = read_state(folder, TINY_LLAMA, policy=FP16)
    assert len(list(state.blocks)) == 2


@pytest.mark.slow
def test_mistakes_are_one_sentence(tmp_path):
    two = np.asarray([2, 1], np.int32)
    request = Request(batch=2, tokens=1, context=320)
    loaded = place_block(STORED, NODE, plan("attention", data=2), request)
    cache = filled_cache(loaded, 2)
    with pytest.raises(PlanError, match="a cache was given; it needs an attention block and pos"):
        block_state(TINY_LLAMA, loaded, 0, cache=cache)
    with pytest.raises(PlanError, match="its cache has 320 positions; 1, 321 were given"):
        block_state(TINY_LLAMA, loaded, 0, cache=cache, positions=np.asarray([1, 321], np.int32))
    kept = block_state(TINY_LLAMA, loaded, 0, cache=cache, positions=two)
    with pytest.raises(WeightsError, match="it has a cache, but the state has no positions"):
        save_state(tmp_path, state_of(TINY_LLAMA, "fp16", [kept]))
    with pytest.raises(WeightsError, match="attention block of layer 0: it is in the state twice"):
        save_state(tmp_path, state_of(TINY_LLAMA, "fp16", [kept, kept], positions=two))
    with pytest.raises(WeightsError, match="belongs to another model or policy"):
        save_state(tmp_path, state_of(TINY_LLAMA, "int8", [kept], positions=two))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(PlanError, match="has 2 sequences; a batch of 3 was asked for"):
        restored_block(kept, NODE, plan("attention", data=2), replace(request, batch=3), two)
    with pytest.raises(PlanError, match="its cache has 1 positions; 2, 1 were given"):
        restored_block(kept, NODE, plan("attention", data=2), replace(request, context=1), two)
    dense = store_block(SyntheticWeights(UNEVEN_KIMI), "dense", 0, POLICIES["mxfp4"])
    wide = place_block(dense, NODE, plan("dense", tensor=2), DECODE, widen_once=True)
    with pytest.raises(PlanError, match="its weights were widened when it was placed"):
        block_state(UNEVEN_KIMI, wide, 0)
    assert block_state(UNEVEN_KIMI, wide, 0, stored=dense).stored is dense
