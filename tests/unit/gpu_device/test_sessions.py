"""Requests whose scheduler was lost do not hold KV memory for ever."""

from __future__ import annotations

import pytest
from tiny_device import make_store, rig
from tiny_models import make_qwen3_moe

from moespac.actors.core import Sampling
from moespac.actors.gpu_device.kv import KvBudget, KvExhausted
from moespac.actors.gpu_device.sessions import IDLE_S, BadRequest, Sessions, UnknownRequest


def test_idle_requests_make_room_for_new_ones(tmp_path):
    target = make_qwen3_moe(tmp_path / "target")
    with rig(target, make_store(target, tmp_path / "store")) as device:
        now = 0.0
        sessions = Sessions(device.decoder, KvBudget(100, 1), clock=lambda: now)
        sessions.open("orphan", [1, 2], 60, Sampling())
        sessions.open("busy", [3], 30, Sampling())
        now = IDLE_S
        sessions.get("busy")
        with pytest.raises(KvExhausted):
            sessions.open("new", [4], 60, Sampling())
        now = IDLE_S + 1
        sessions.open("new", [4], 60, Sampling())
        with pytest.raises(UnknownRequest, match="'orphan' is not open"):
            sessions.get("orphan")
        assert sessions.get("busy").tokens == [3]
        assert sessions.budget.reserved_bytes == 90
        sessions.check_integrity()


def test_requests_of_another_scheduler_are_dropped_before_anything_is_reserved(tmp_path):
    target = make_qwen3_moe(tmp_path / "target")
    with rig(target, make_store(target, tmp_path / "store")) as device:
        sessions = Sessions(device.decoder, KvBudget(100, 1))
        sessions.open("a", [1], 40, Sampling(), "first")
        sessions.open("b", [2], 40, Sampling(), "first")
        held = [sessions.get("a"), sessions.get("b")]
        sessions.let_go_unless_of("first")
        assert not any(session.closing for session in held)
        # What runs now for the scheduler that has gone breaks off.
        sessions.let_go_unless_of("second")
        assert all(session.closing for session in held)
        sessions.open("c", [3], 90, Sampling(), "second")
        for name in ("a", "b"):
            with pytest.raises(UnknownRequest):
                sessions.get(name)
        assert sessions.budget.reserved_bytes == 90 and sessions.alone("c") and not sessions.get("c").closing
        sessions.check_integrity()


def test_what_cannot_be_computed_as_asked_is_refused_by_name(tmp_path):
    target = make_qwen3_moe(tmp_path / "target")
    with rig(target, make_store(target, tmp_path / "store")) as device:
        sessions = Sessions(device.decoder, KvBudget(100, 1))
        with pytest.raises(BadRequest, match=r"^prompt_tokens: 3 of 2 token_ids"):
            sessions.open("a", [1, 2], 9, Sampling(), prompt_tokens=3)
        with pytest.raises(BadRequest, match=r"^logit_bias: 320 is no token, the vocabulary has 320"):
            sessions.open("a", [1, 2], 9, Sampling(logit_bias=((319, 1.0), (320, 1.0))))
        assert sessions.budget.reserved_bytes == 0
        sessions.open("a", [1, 2], 9, Sampling(logit_bias=((319, 1.0),)), prompt_tokens=1, logprobs=0)
        assert sessions.get("a").sampler.prompt_tokens == 1 and sessions.get("a").logprobs == 0
