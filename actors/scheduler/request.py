"""One request on its way through the scheduler."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

from ...protos.v1 import generation_pb2 as pb
from ..core import Sampling
from ..policy.drafting_facts import RequestDrafts
from .tally import Tally


@dataclass(frozen=True)
class Failure:
    """Why a request ended without its tokens: one gRPC status, with what to do about it in `message`."""

    code: grpc.StatusCode
    message: str


@dataclass(frozen=True)
class End:
    """Why a request is complete."""

    reason: pb.Statistics.FinishReason
    stop_token: int | None = None
    """The token that ended it; not part of the output."""


@dataclass
class Request:
    """State of one request; owned by the event loop."""

    id: str
    prompt_ids: tuple[int, ...]
    max_tokens: int
    """In all: tokens already emitted before a restart are part of it."""
    sampling: Sampling
    gamma: int | None
    """Draft tokens a step; None: the governor's choice."""
    most_drafted: int
    """Draft tokens that a step may have."""
    trace: bool
    stop_tokens: frozenset[int]
    """Tokens that end it, those of the end of text among them unless they are to be ignored."""
    logprobs: int | None
    """Most probable tokens to report beside each emitted one; None: no log-probabilities."""
    tally: Tally
    deadline_s: float = math.inf
    """When the client gives up; seconds of `time.monotonic`."""
    emitted: list[int] = field(default_factory=list)
    drafts: RequestDrafts = field(init=False)
    """What the governor has learned of it."""
    opened: bool = False
    """The device holds its KV cache."""
    abandoned: bool = False
    """The client has left: no further step is taken for it."""
    events: asyncio.Queue[pb.SubmitEvent | Failure] = field(default_factory=asyncio.Queue)
    """One event a step at most: bounded by max_tokens and the prompt's chunks."""
    stalls: int = 0
    """Times the device was lost since this request last made progress."""

    def __post_init__(self) -> None:
        self.drafts = RequestDrafts("greedy" if self.sampling.greedy else self.sampling.verification)

    @property
    def remaining(self) -> int:
        """Tokens still wanted."""
        return self.max_tokens - len(self.emitted)

    @property
    def reserve_tokens(self) -> int:
        """KV cache positions it can ever need: a verification writes γ tokens beyond the last accepted one."""
        return len(self.prompt_ids) + self.max_tokens + self.most_drafted

    def take(self, tokens: Sequence[int]) -> tuple[list[int], End | None]:
        """Adds a step's tokens; returns those the client gets and, when the request is done, why."""
        kept: list[int] = []
        end: End | None = None
        for token in tokens:
            if token in self.stop_tokens:
                end = End(pb.Statistics.STOP, token)
                break
            kept.append(token)
            if len(self.emitted) + len(kept) == self.max_tokens:
                end = End(pb.Statistics.LENGTH)
                break
        self.emitted += kept
        return kept, end
