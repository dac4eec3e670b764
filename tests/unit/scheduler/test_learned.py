"""The file that keeps an estimator's state over a restart."""

import numpy as np
import pytest

from moespac.actors.scheduler import learned
from moespac.actors.scheduler.learned import LearnedFile

STATE = {"shares": np.arange(6, dtype=np.float32).reshape(2, 3), "map.weights": np.ones(4)}


def test_what_is_saved_is_loaded(tmp_path):
    LearnedFile(tmp_path / "store", "best", "abc").save(STATE)
    loaded = LearnedFile(tmp_path / "store", "best", "abc").load()
    assert loaded.keys() == STATE.keys()
    for name, array in STATE.items():
        np.testing.assert_array_equal(loaded[name], array)
    assert [path.name for path in tmp_path.iterdir()] == ["store.best.npz"]


def test_nothing_saved_is_a_cold_start(tmp_path):
    assert LearnedFile(tmp_path / "store", "best", "abc").load() is None


@pytest.mark.parametrize("damage", ["other weights", "cut short", "no archive"])
def test_a_file_of_no_use_is_refused(tmp_path, damage, capsys):
    file = LearnedFile(tmp_path / "store", "best", "abc")
    file.save(STATE)
    whole = file.path.read_bytes()
    if damage == "cut short":
        file.path.write_bytes(whole[: len(whole) // 2])
    elif damage == "no archive":
        file.path.write_bytes(b"not an archive")
    else:
        file = LearnedFile(tmp_path / "store", "best", "other")
    assert file.load() is None
    assert "refused" in capsys.readouterr().out


def test_too_large_a_state_leaves_the_last_file(tmp_path, monkeypatch):
    file = LearnedFile(tmp_path / "store", "best", "abc")
    file.save(STATE)
    monkeypatch.setattr(learned, "MAX_BYTES", 16)
    file.save({"shares": np.zeros(100)})
    monkeypatch.undo()
    assert file.load().keys() == STATE.keys()


def test_a_failed_write_leaves_the_last_file_and_no_scraps(tmp_path, monkeypatch):
    file = LearnedFile(tmp_path / "store", "best", "abc")
    file.save(STATE)

    def full(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", full)
    file.save({"shares": np.zeros(3)})
    assert file.load().keys() == STATE.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["store.best.npz"]


def test_nonsense_is_neither_saved_nor_taken_up(tmp_path, monkeypatch, capsys):
    """A state that is not finite would stay so for ever, over every restart."""
    file, broken = LearnedFile(tmp_path / "store", "best", "abc"), STATE | {"map.weights": np.array([1.0, np.nan])}
    file.save(STATE)
    file.save(broken)
    assert file.load().keys() == STATE.keys()
    with monkeypatch.context() as patch:
        patch.setattr(learned, "_not_finite", lambda state: "")
        file.save(broken)
    assert file.load() is None
    assert "map.weights holds numbers that are not finite" in capsys.readouterr().out
