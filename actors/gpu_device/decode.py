"""The decode loop: prefill a chunk, or draft, verify in one pass, accept, roll back.

One `step` is one turn of one request. Between steps the target's cache holds all tokens but the last, which is
the next pass's first input.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ..core import DraftChoice, Proposal, Sampling, TokenLogprobs
from ..policy.chain import Chain
from ..policy.logprobs import token_logprobs
from ..policy.ngram import Found, Judgement, judge
from ..policy.sampler import Sampler
from ..policy.verification import verify
from .drafts.interface import Draft, DraftState
from .drafts.ngram import NgramDraft
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
    sampler: Sampler
    target_cache: RequestCache
    drafts: dict[str, DraftState]
    """What each kind of draft keeps of it."""
    logprobs: int | None = None
    """How many of the most probable tokens to report beside each emitted one; None: no log-probabilities at all."""
    closing: bool = False
    """Nobody wants further tokens: a step that runs breaks off."""

    def rollback(self) -> None:
        """Drops whatever the caches hold beyond the tokens decided: rejected drafts, or a pass that broke off."""
        keep = len(self.tokens) - 1
        self.target_cache.rollback(min(self.target_cache.length, keep))
        for state in self.drafts.values():
            state.rollback(keep)

    def nbytes(self) -> int:
        return self.target_cache.nbytes() + sum(state.nbytes() for state in self.drafts.values())

    def behind(self) -> dict[str, int]:
        """By kind of draft: decided tokens that it must compute before its next proposal, beyond the last."""
        return {kind: state.behind(len(self.tokens)) for kind, state in self.drafts.items()}


@dataclass(frozen=True)
class StepResult:
    """What a step decided and what it took."""

    emitted: tuple[int, ...]
    proposed: int
    accepted: int
    prefill: bool
    draft_s: float
    verify_s: float
    draft_kind: str = ""
    """Of the draft that proposed; empty if none did."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """Of each emitted token, where the session asks for them."""
    places: tuple[int, ...] = ()
    """Of each token proposed: as `Proposal.places`."""
    ngrams: Judgement = field(default_factory=Judgement)
    """Of what n-grams found, asked or not; nothing found where the device has no such draft."""


class Decoder:
    """Runs steps, one at a time."""

    def __init__(self, target: LoadedModel, drafts: Mapping[str, Draft], executor: LayerExecutor):
        """`drafts`: by kind."""
        self.target, self.drafts, self.executor = target, drafts, executor

    def open(
        self,
        request_id: str,
        tokens: Sequence[int],
        reserved_tokens: int,
        sampling: Sampling,
        prompt_tokens: int | None = None,
        logprobs: int | None = None,
    ) -> Session:
        """A session that has computed nothing yet. `prompt_tokens`: of `tokens`, where not all are the prompt."""
        sampler = Sampler(sampling, len(tokens) if prompt_tokens is None else prompt_tokens)
        target_cache = RequestCache(self.target, reserved_tokens)
        states = {kind: draft.open(target_cache) for kind, draft in self.drafts.items()}
        return Session(request_id, list(tokens), reserved_tokens, sampler, target_cache, states, logprobs)

    def closed(self, session: Session) -> None:
        """The session takes no further step."""
        for draft in self.drafts.values():
            draft.closed(session.tokens)

    @torch.inference_mode()
    def step(self, session: Session, choices: Sequence[DraftChoice], prefill_chunk: int, run: Pass) -> StepResult:
        """One turn: a chunk of pending prompt tokens, or drafting and verification.

        Of `choices` the first that proposes anything is verified; without any, the step decides one token.
        Routing and timings are written to `run`. If it raises, the session is as before and can step again.
        """
        run.check_wanted()
        try:
            pending = len(session.tokens) - session.target_cache.length
            if pending > 1:
                return self._prefill(session, min(pending, prefill_chunk), run)
            return self._draft_and_verify(session, choices, run)
        finally:
            session.rollback()

    def _prefill(self, session: Session, chunk: int, run: Pass) -> StepResult:
        done = session.target_cache.length
        started = time.perf_counter()
        logits = self._forward(session, session.tokens[done : done + chunk], 1, run)
        emitted: tuple[int, ...] = ()
        if done + chunk == len(session.tokens):
            emitted = (session.sampler.choose(logits[-1], session.tokens),)
            session.tokens.extend(emitted)
        logprobs = _logprobs(session, emitted, logits)
        return StepResult(emitted, 0, 0, True, 0.0, time.perf_counter() - started, logprobs=logprobs)

    def _draft_and_verify(self, session: Session, choices: Sequence[DraftChoice], run: Pass) -> StepResult:
        position = len(session.tokens)
        room = min(session.reserved_tokens, self.target.context_length) - position
        if room < 0:
            raise ContextFull(
                f"request {session.request_id} has {position} tokens; {session.reserved_tokens} were reserved "
                f"and the model's context is {self.target.context_length}"
            )
        started = time.perf_counter()
        # Asked or not: it takes next to no time, and the verification judges it for nothing.
        found = self._look_up(session, room)
        kind, draft = self._draft(session, choices, room, run)
        drafted = time.perf_counter()
        logits = self._forward(session, [session.tokens[-1], *draft.tokens], len(draft.tokens) + 1, run)
        decided = verify(session.sampler, session.tokens, draft, logits)
        session.tokens.extend(decided.emitted)
        logprobs = _logprobs(session, decided.emitted, logits)
        verified = time.perf_counter()
        return StepResult(
            decided.emitted,
            len(draft.tokens),
            decided.accepted,
            False,
            drafted - started,
            verified - drafted,
            kind,
            logprobs,
            draft.places,
            judge(found, decided.emitted),
        )

    def _look_up(self, session: Session, room: int) -> Found:
        """What n-grams would propose, of at most `room` tokens."""
        draft = self.drafts.get("ngram")
        if not isinstance(draft, NgramDraft) or room < 1:
            return Found()
        match, tokens = draft.look_up(session.tokens, session.drafts["ngram"])
        return Found(match, tokens[:room])

    def _draft(self, session: Session, choices: Sequence[DraftChoice], room: int, run: Pass) -> tuple[str, Proposal]:
        """The kind that proposed ("" if none did) and its proposal, of at most `room` tokens."""
        sampler = session.sampler.drafting(len(session.tokens))
        for choice in choices:
            chain = Chain(choice, room)
            if not chain.wants_more():
                continue
            state = session.drafts[choice.kind]
            began = time.time_ns()
            proposal = self.drafts[choice.kind].propose(session.tokens, state, chain, sampler, run)
            drafted = len(proposal.tokens)
            run.span("draft", f"{choice.kind} {drafted}", began, time.time_ns(), gamma=drafted, wanted=chain.most)
            if proposal.tokens:
                return choice.kind, proposal
        return "", Proposal()

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


def _logprobs(session: Session, emitted: Sequence[int], logits: np.ndarray) -> tuple[TokenLogprobs, ...]:
    """Row i of `logits` is what emitted[i] was decided from."""
    if session.logprobs is None:
        return ()
    return tuple(token_logprobs(row, token, session.logprobs) for row, token in zip(logits, emitted, strict=False))
