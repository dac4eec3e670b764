"""Whether a request can be served at all. Pure: no gRPC, no clock."""

from __future__ import annotations

import math

from ...protos.v1 import generation_pb2

MAX_GAMMA = 16
"""Draft tokens a step that a client may ask for; beyond that the chance that all are accepted is nil."""

MAX_PROMPT_CHARACTERS = 4 * 1024 * 1024
"""Beyond any context; splitting more into tokens would take gigabytes of memory."""


class RequestInvalid(ValueError):
    """A field of the request is wrong."""

    def __init__(self, field: str, value: object, problem: str, remedy: str):
        super().__init__(f"{field}: {value!r} {problem}: {remedy}")
        self.field = field


def check_request(request: generation_pb2.GenerateRequest, model: str, has_draft: bool) -> None:
    """Checks what can be checked without the tokenizer. Raises RequestInvalid."""
    sampling = request.sampling
    if request.model not in ("", model):
        raise RequestInvalid("model", request.model, "is not served here", f"leave it empty or ask for {model!r}")
    if not request.prompt:
        raise RequestInvalid("prompt", "", "is empty", "give the text to continue")
    if len(request.prompt) > MAX_PROMPT_CHARACTERS:
        raise RequestInvalid(
            "prompt",
            f"{len(request.prompt)} characters",
            f"is over the limit of {MAX_PROMPT_CHARACTERS}",
            "shorten it",
        )
    if request.max_tokens < 1:
        raise RequestInvalid("max_tokens", request.max_tokens, "is below 1", "ask for at least one token")
    if not (math.isfinite(sampling.temperature) and sampling.temperature >= 0):
        raise RequestInvalid(
            "temperature",
            sampling.temperature,
            "is not a number >= 0",
            "use 0 for greedy decoding, 1 for the model's own",
        )
    # 0 is what an unset field reads as.
    if not 0 <= sampling.top_p <= 1:
        raise RequestInvalid("top_p", sampling.top_p, "is outside (0, 1]", "use 1 for no limit")
    if request.HasField("gamma"):
        if request.gamma > MAX_GAMMA:
            raise RequestInvalid("gamma", request.gamma, f"is above {MAX_GAMMA}", "ask for fewer draft tokens a step")
        if request.gamma > 0 and not has_draft:
            raise RequestInvalid(
                "gamma", request.gamma, "needs a draft model and none is served", "leave it unset, or use 0"
            )


def check_length(prompt_tokens: int, max_tokens: int, context_length: int) -> None:
    """Checks the sizes in tokens. Raises RequestInvalid."""
    if prompt_tokens == 0:
        raise RequestInvalid("prompt", "", "has no tokens for this model", "give it some visible text")
    if prompt_tokens >= context_length:
        raise RequestInvalid(
            "prompt",
            f"{prompt_tokens} tokens",
            f"leaves no room in the context of {context_length} tokens",
            f"shorten it to at most {context_length - 1} tokens",
        )
    if prompt_tokens + max_tokens > context_length:
        raise RequestInvalid(
            "max_tokens",
            max_tokens,
            f"and the prompt's {prompt_tokens} tokens are {prompt_tokens + max_tokens}, over the context of "
            f"{context_length} tokens",
            f"ask for at most {context_length - prompt_tokens}, or shorten the prompt",
        )
