"""The decode loop: prefill a chunk, or draft, verify in one pass, accept, roll back.

One `step` is one turn of one request. Between steps the target's cache holds all tokens but the last, which is
the next pass's first input.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..core import Sampling
from ..policy.acceptance import accept
from ..policy.sampling import choose_token
from .drafting import Drafter
from .hook import experts_computed_by
from .kv import RequestCache
from .layer import LayerExecutor
from .passes import Pass
from .trunk import LoadedModel


class ContextFull(RuntimeError):
    """No position is left for a further token."""


@dataclass
class Session:
    """One request on the device."""

    request_id: str
    tokens: list[int]
    """Prompt, then everything emitted."""
    reserved_tokens: int
    """Positions that its caches may grow to."""
    sampling: Sampling
    target_cache: RequestCache
    draft_cache: RequestCache | None
    closing: bool = False
    """Nobody wants further tokens: a step that runs breaks off."""

    def rollback(self) -> None:
        """Drops whatever the caches hold beyond the tokens decided: rejected drafts, or a pass that broke off."""
        keep = len(self.tokens) - 1
        for cache in (self.target_cache, self.draft_cache):
            if cache is not None:
                cache.rollback(min(cache.length, keep))

    def nbytes(self) -> int:
        return self.target_cache.nbytes() + (self.draft_cache.nbytes() if self.draft_cache else 0)


@dataclass(frozen=True)
class StepResult:
    """What a step decided and what it took."""

    emitted: tuple[int, ...]
    proposed: int
    accepted: int
    prefill: bool
    draft_s: float
    verify_s: float


class Decoder:
    """Runs steps, one at a time."""

    def __init__(self, target: LoadedModel, drafter: Drafter | None, executor: LayerExecutor):
        self.target, self.drafter, self.executor = target, drafter, executor

    def open(self, request_id: str, tokens: Sequence[int], reserved_tokens: int, sampling: Sampling) -> Session:
        """A session that has computed nothing yet."""
        draft_cache = RequestCache(self.drafter.model, reserved_tokens) if self.drafter else None
        target_cache = RequestCache(self.target, reserved_tokens)
        return Session(request_id, list(tokens), reserved_tokens, sampling, target_cache, draft_cache)

    @torch.inference_mode()
    def step(self, session: Session, gamma: int, prefill_chunk: int, run: Pass) -> StepResult:
        """One turn: a chunk of pending prompt tokens, or up to `gamma` draft tokens and their verification.

        Routing and timings are written to `run`. If it raises, the session is as before and can step again.
        """
        run.check_wanted()
        try:
            pending = len(session.tokens) - session.target_cache.length
            if pending > 1:
                return self._prefill(session, min(pending, prefill_chunk), run)
            return self._draft_and_verify(session, gamma, run)
        finally:
            session.rollback()

    def _prefill(self, session: Session, chunk: int, run: Pass) -> StepResult:
        done = session.target_cache.length
        started = time.perf_counter()
        logits = self._forward(session, session.tokens[done : done + chunk], 1, run)
        emitted: tuple[int, ...] = ()
        if done + chunk == len(session.tokens):
            emitted = (choose_token(logits[-1], session.sampling, len(session.tokens)),)
            session.tokens.extend(emitted)
        return StepResult(emitted, 0, 0, True, 0.0, time.perf_counter() - started)

    def _draft_and_verify(self, session: Session, gamma: int, run: Pass) -> StepResult:
        position = len(session.tokens)
        room = min(session.reserved_tokens, self.target.context_length) - position
        if room < 0:
            raise ContextFull(
                f"request {session.request_id} has {position} tokens; {session.reserved_tokens} were reserved "
                f"and the model's context is {self.target.context_length}"
            )
        started = time.perf_counter()
        draft = self._draft(session, min(gamma, room), run)
        drafted = time.perf_counter()
        logits = self._forward(session, [session.tokens[-1], *draft], len(draft) + 1, run)
        chosen = [choose_token(row, session.sampling, position + i) for i, row in enumerate(logits)]
        decided = accept(draft, chosen)
        session.tokens.extend(decided.emitted)
        verified = time.perf_counter()
        return StepResult(decided.emitted, len(draft), decided.accepted, False, drafted - started, verified - drafted)

    def _draft(self, session: Session, gamma: int, run: Pass) -> list[int]:
        if self.drafter is None or session.draft_cache is None or gamma == 0:
            return []
        with run.traced("draft", f"draft {gamma}"):
            return self.drafter.propose(session.tokens, session.draft_cache, gamma, session.sampling)

    def _forward(self, session: Session, tokens: Sequence[int], keep: int, run: Pass) -> np.ndarray:
        """Logits of the last `keep` of `tokens`, float32 [keep, V]; the cache has grown by all of them."""
        ids = torch.tensor([tokens], device=self.target.device)
        run.tokens, run.token_ids = len(tokens), tuple(tokens)
        with run.traced("trunk", f"pass of {len(tokens)}"), experts_computed_by(self.executor.bound_to(run)):
            out = self.target.model(
                ids, past_key_values=session.target_cache.cache, use_cache=True, logits_to_keep=keep
            )
            logits = out.logits[0].float().cpu().numpy()
        session.target_cache.grown(len(tokens))
        return logits
