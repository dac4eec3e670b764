"""Draft and target with different tokenizers are told apart before anything is loaded."""

from __future__ import annotations

import json

import pytest

from moespac.actors.gpu_device.same_tokenizer import TokenizerMismatch, check_same_tokenizer


def _write(folder, vocab, merges, added=()):
    folder.mkdir()
    content = {
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
        "added_tokens": [{"content": token, "id": i} for token, i in added],
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def target(tmp_path):
    return _write(tmp_path / "target", {"a": 0, "b": 1, "ab": 2}, [["a", "b"]], [("<end>", 3)])


def test_the_same_tokens_pass_however_merges_are_written(tmp_path, target):
    draft = _write(tmp_path / "draft", {"ab": 2, "b": 1, "a": 0}, ["a b"], [("<end>", 3)])
    check_same_tokenizer(target, draft)


def test_another_id_is_named(tmp_path, target):
    draft = _write(tmp_path / "draft", {"a": 1, "b": 0, "ab": 2}, ["a b"], [("<end>", 3)])
    with pytest.raises(TokenizerMismatch, match=r"vocabulary differ \('a' is 0 in the target, 1 in the draft\)"):
        check_same_tokenizer(target, draft)


def test_other_merges_and_special_tokens_are_told(tmp_path, target):
    with pytest.raises(TokenizerMismatch, match="merges differ"):
        check_same_tokenizer(target, _write(tmp_path / "m", {"a": 0, "b": 1, "ab": 2}, [], [("<end>", 3)]))
    with pytest.raises(TokenizerMismatch, match=r"special tokens differ \('<end>' is 3 in the target, absent"):
        check_same_tokenizer(target, _write(tmp_path / "s", {"a": 0, "b": 1, "ab": 2}, ["a b"], [("<pad>", 4)]))


@pytest.mark.parametrize("tail", [[], [("<end>", 3), ("<tool>", 4), ("<think>", 5)]], ids=["shorter", "longer"])
def test_a_tail_that_only_one_has_is_tolerated(tmp_path, target, tail):
    check_same_tokenizer(target, _write(tmp_path / "draft", {"a": 0, "b": 1, "ab": 2}, ["a b"], tail))


def test_missing_and_damaged_files_are_named(tmp_path, target):
    (tmp_path / "empty").mkdir()
    with pytest.raises(TokenizerMismatch, match=r"empty.tokenizer\.json is missing"):
        check_same_tokenizer(target, tmp_path / "empty")
    (tmp_path / "empty" / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerMismatch, match="damaged"):
        check_same_tokenizer(target, tmp_path / "empty")
