"""Checkpoints: whole or absent, the last and the one before, refused where they are another's."""

from __future__ import annotations

import shutil

import pytest
import torch

from jobs.dictionaries.checkpoint import Checkpoints
from store.errors import ConflictError

RECIPE = {"train": {"k": 4}, "feed": {"seed": 0}}


@pytest.fixture
def saves(tmp_path):
    return Checkpoints(tmp_path, RECIPE)


def save(saves, *steps):
    for step in steps:
        saves.save(step, {"w": torch.full((3,), float(step))}, {"step": step})


def names(saves):
    return sorted(path.name for path in (saves.out / "checkpoints").iterdir())


def test_the_last_two_are_kept_and_the_last_is_read(saves):
    save(saves, 1, 2, 30)
    assert names(saves) == ["step-000000002", "step-000000030"]
    tensors, state = saves.latest()
    assert state == {"step": 30}
    assert tensors["w"].tolist() == [30.0] * 3


def test_nothing_saved_is_none(saves, tmp_path):
    assert saves.latest() is None
    assert Checkpoints(None, RECIPE).latest() is None
    Checkpoints(None, RECIPE).save(1, {}, {})
    assert list(tmp_path.iterdir()) == []


def _flip(folder):
    path = folder / "state.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def _truncate(folder):
    path = folder / "state.json"
    path.write_bytes(path.read_bytes()[:40])


DAMAGE = {
    "a flipped bit": _flip,
    "a short card": _truncate,
    "no card": lambda folder: (folder / "state.json").unlink(),
    "no tensors": lambda folder: (folder / "state.safetensors").unlink(),
    "nothing in it": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=list(DAMAGE))
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(saves, tmp_path, damage):
    save(saves, 1, 2)
    damage(tmp_path / "checkpoints" / "step-000000002")
    _, state = saves.latest()
    assert state == {"step": 1}


@pytest.mark.parametrize("call", ["replace", "rename"])
def test_a_crash_while_writing_leaves_the_old_ones(saves, monkeypatch, call):
    save(saves, 1, 2)

    def crash(*_):
        raise OSError("power cut")

    monkeypatch.setattr(f"pathlib.Path.{call}", crash)
    with pytest.raises(OSError, match="power cut"):
        save(saves, 3)
    monkeypatch.undo()
    assert saves.latest()[1] == {"step": 2}
    save(saves, 3)
    assert names(saves) == ["step-000000002", "step-000000003"]


def test_a_step_may_be_saved_again(saves):
    save(saves, 1, 2, 2)
    assert names(saves) == ["step-000000001", "step-000000002"]


def test_another_recipe_is_refused_with_what_differs(saves, tmp_path):
    save(saves, 1)
    with pytest.raises(ConflictError) as caught:
        Checkpoints(tmp_path, {**RECIPE, "train": {"k": 5}}).latest()
    assert caught.value.kind == "other-recipe"
    assert '"k": 5' in str(caught.value)
    assert '"k": 4' in str(caught.value)
    assert "feed" not in str(caught.value)


def test_a_moved_folder_still_resumes(saves, tmp_path):
    save(saves, 1)
    shutil.move(tmp_path / "checkpoints", tmp_path / "elsewhere" / "checkpoints")
    assert Checkpoints(tmp_path / "elsewhere", RECIPE).latest()[1] == {"step": 1}
