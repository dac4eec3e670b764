"""What can be asked of a generation, and the message that says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

from ...protos.v1 import generation_pb2, steps_pb2
from .errors import InvalidRequest

VERIFICATIONS = tuple(name.lower() for name, _ in steps_pb2.Sampling.Verification.items())


class Options(TypedDict, total=False):
    """Keyword arguments of `generate`. With none of them: greedy decoding, up to the end-of-text token."""

    temperature: float
    """0: greedy; 1: the model's own distribution."""
    top_p: float
    """The fewest most probable tokens that together have this probability; 1: all."""
    top_k: int
    """So many most probable tokens; 0: all."""
    min_p: float
    """Tokens at least this share as probable as the most probable one; 0: all."""
    repetition_penalty: float
    """Divides positive and multiplies negative logits of tokens in prompt and output; 1: none."""
    presence_penalty: float
    """Taken off the logits of the output's tokens."""
    frequency_penalty: float
    """Taken off a token's logit as often as the output contains it."""
    logit_bias: Mapping[int, float]
    """Added to the logits of these tokens."""
    seed: int
    """Of the sampling noise: the same request with the same seed says the same."""
    verification: Literal["coupled", "rejection"]
    """Of drafts. Under "rejection" a seed does not fix the tokens, only their distribution."""
    gamma: int | None
    """Draft tokens a step; None: the deployment's. It changes the speed, not the text."""
    stop: str | Sequence[str]
    """The text ends before the first of these; special tokens have no text: see `stop_token_ids`."""
    stop_token_ids: Sequence[int]
    """End the generation as the end-of-text token does; they are not part of the output."""
    ignore_eos: bool
    """Go on to `max_tokens` past the end-of-text token."""
    logprobs: int | None
    """Also collect `logprobs`, with those of so many most probable tokens; 0: the emitted token's only."""
    trace: bool
    """Also collect `spans`."""
    model: str
    """"" is the one that is served."""


_OF_SAMPLING = frozenset(steps_pb2.Sampling.DESCRIPTOR.fields_by_name)
_ZERO_IS_UNSET = {
    "top_p": "0 is outside (0, 1]: use 1 for no limit, or temperature=0 for greedy decoding",
    "repetition_penalty": "0 is not above 0: use 1 for no penalty",
}


def generate_request(prompt: str, max_tokens: int = 128, **options: object) -> generation_pb2.GenerateRequest:
    """The message for `Options`. Raises InvalidRequest for what the message cannot even hold."""
    if not isinstance(prompt, str):
        raise InvalidRequest(f"prompt: {type(prompt).__name__} is not text: pass a str")
    unknown = options.keys() - Options.__annotations__.keys()
    if unknown:
        raise TypeError(f"generate() has no option {', '.join(sorted(unknown))}: see moespac.cluster.client.Options")
    request = generation_pb2.GenerateRequest()
    for name, value in {"prompt": prompt, "max_tokens": max_tokens, **options}.items():
        # On the wire 0 means "not set": it would silently become 1.
        if name in _ZERO_IS_UNSET and value == 0:
            raise InvalidRequest(f"{name}: {_ZERO_IS_UNSET[name]}")
        try:
            _set(request.sampling if name in _OF_SAMPLING else request, name, value)
        except (TypeError, ValueError, AttributeError) as error:
            raise InvalidRequest(f"{name}: {value!r} cannot be sent: {error}") from error
    return request


def _set(message, name: str, value: object) -> None:
    if name in ("gamma", "logprobs") and value is None:
        return
    if name == "verification":
        if value not in VERIFICATIONS:
            raise ValueError(f"use {' or '.join(VERIFICATIONS)}")
        value = steps_pb2.Sampling.Verification.Value(value.upper())
    if name == "logit_bias":
        message.logit_bias.update(value)
    elif name == "stop":
        message.stop.extend([value] if isinstance(value, str) else value)
    elif name == "stop_token_ids":
        message.stop_token_ids.extend(value)
    else:
        setattr(message, name, value)
