"""The requests that the device knows, each with its KV reservation."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from ..core import Sampling
from .decode import Decoder, Session
from .kv import KvBudget, KvExhausted

IDLE_S = 300.0
"""A request untouched for so long has lost its scheduler; it goes when its memory is wanted."""


class UnknownRequest(LookupError):
    """No such request is open here; it never was, was closed, or the device has been restarted since."""


class BadRequest(ValueError):
    """The request can never be computed as asked."""


class Sessions:
    """Opens and closes requests, on the thread that computes; `let_go` is for other threads."""

    def __init__(self, decoder: Decoder, budget: KvBudget, clock: Callable[[], float] = time.monotonic):
        self._decoder, self.budget, self._clock = decoder, budget, clock
        # Guards the dictionaries, which `let_go` reads while requests come and go.
        self._lock = threading.Lock()
        self._open: dict[str, Session] = {}
        self._touched: dict[str, float] = {}
        self._scheduler = ""

    def open(
        self,
        request_id: str,
        tokens: Sequence[int],
        reserve_tokens: int,
        sampling: Sampling,
        scheduler: str = "",
        prompt_tokens: int | None = None,
        logprobs: int | None = None,
    ) -> None:
        """Reserves KV memory and takes the tokens. One of the same id is replaced: its scheduler starts anew.

        `scheduler`: its incarnation; whatever another one opened is dropped, as nobody will close it. `prompt_tokens`,
        `logprobs`: as `Decoder.open` takes them.
        Raises BadRequest, and KvExhausted when the budget is taken.
        """
        with self._lock:
            if scheduler != self._scheduler:
                for abandoned in list(self._open):
                    self._drop(abandoned)
                self._scheduler = scheduler
        self._check(tokens, reserve_tokens, sampling, prompt_tokens)
        with self._lock:
            self._drop(request_id)
            try:
                self.budget.reserve(request_id, reserve_tokens)
            except KvExhausted:
                if not self._drop_idle():
                    raise
                self.budget.reserve(request_id, reserve_tokens)
            self._open[request_id] = self._decoder.open(
                request_id, tokens, reserve_tokens, sampling, prompt_tokens, logprobs
            )
            self._touched[request_id] = self._clock()

    def get(self, request_id: str) -> Session:
        """Raises UnknownRequest."""
        with self._lock:
            session = self._open.get(request_id)
            if session is None:
                raise UnknownRequest(
                    f"request {request_id!r} is not open on this device: open it first, with all its tokens"
                )
            self._touched[request_id] = self._clock()
            return session

    def close(self, request_id: str) -> None:
        """Frees what the request holds; one that is not open is no error."""
        with self._lock:
            self._drop(request_id)

    def let_go(self, request_id: str) -> None:
        """Has a step of this request that runs now break off before its next layer. From any thread."""
        with self._lock:
            session = self._open.get(request_id)
        if session is not None:
            session.closing = True

    def let_go_unless_of(self, scheduler: str) -> None:
        """`let_go` of everything that another scheduler opened. From any thread."""
        with self._lock:
            if scheduler != self._scheduler:
                for session in self._open.values():
                    session.closing = True

    def alone(self, request_id: str) -> bool:
        """Whether no other request is open."""
        with self._lock:
            return self._open.keys() <= {request_id}

    def check_integrity(self) -> None:
        """Raises RuntimeError unless reservations and caches agree."""
        with self._lock:
            self.budget.check_integrity({name: session.nbytes() for name, session in self._open.items()})

    def _drop(self, request_id: str) -> None:
        session = self._open.pop(request_id, None)
        if session is not None:
            self._decoder.closed(session)
            del self._touched[request_id]
            self.budget.release(request_id)

    def _drop_idle(self) -> bool:
        now = self._clock()
        idle = [request_id for request_id, touched in self._touched.items() if now - touched > IDLE_S]
        for request_id in idle:
            self._drop(request_id)
        return bool(idle)

    def _check(self, tokens: Sequence[int], reserve_tokens: int, sampling: Sampling, prompt_tokens: int | None) -> None:
        limit, vocab = self._decoder.target.context_length, self._decoder.target.vocab_size
        if not tokens:
            raise BadRequest("token_ids: empty: a prompt needs at least one token")
        if len(tokens) > limit:
            raise BadRequest(f"token_ids: {len(tokens)} tokens, the model's context has {limit}: shorten the prompt")
        if max(tokens) >= vocab:
            raise BadRequest(f"token_ids: {max(tokens)} is no token, the vocabulary has {vocab}: wrong tokenizer?")
        if reserve_tokens < len(tokens):
            raise BadRequest(
                f"reserve_tokens: {reserve_tokens} is less than the {len(tokens)} tokens given: "
                "reserve prompt + max_tokens + the largest draft window"
            )
        if prompt_tokens is not None and prompt_tokens > len(tokens):
            raise BadRequest(
                f"prompt_tokens: {prompt_tokens} of {len(tokens)} token_ids: give the length of the prompt among them"
            )
        for token, _ in sampling.logit_bias:
            if token >= vocab:
                raise BadRequest(f"logit_bias: {token} is no token, the vocabulary has {vocab}: use tokens below that")
