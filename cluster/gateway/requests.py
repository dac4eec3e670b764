"""Whether a request can be served at all. Pure: no gRPC, no clock."""

from __future__ import annotations

import math

from ...protos.v1 import generation_pb2, steps_pb2

MAX_GAMMA = 16
"""Draft tokens a step that a client may ask for; beyond that the chance that all are accepted is nil."""

MAX_PROMPT_CHARACTERS = 4 * 1024 * 1024
"""Beyond any context; splitting more into tokens would take gigabytes of memory."""


MAX_LOGPROBS = 20
"""Most probable tokens that can be reported beside each emitted one."""
MAX_LOGIT_BIASES = 1024
MAX_STOPS, MAX_STOP_CHARACTERS = 16, 256
MAX_STOP_TOKENS = 64


class RequestInvalid(ValueError):
    """A field of the request is wrong."""

    def __init__(self, field: str, value: object, problem: str, remedy: str):
        super().__init__(f"{field}: {value!r} {problem}: {remedy}")
        self.field = field


def check_request(request: generation_pb2.GenerateRequest, model: str, has_draft: bool) -> None:
    """Checks what can be checked without the tokenizer. Raises RequestInvalid."""
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
    _check_sampling(request.sampling)
    _check_ends(request)
    if request.HasField("logprobs") and request.logprobs > MAX_LOGPROBS:
        raise RequestInvalid("logprobs", request.logprobs, f"is above {MAX_LOGPROBS}", "ask for fewer tokens' at once")
    if request.HasField("gamma"):
        if request.gamma > MAX_GAMMA:
            raise RequestInvalid("gamma", request.gamma, f"is above {MAX_GAMMA}", "ask for fewer draft tokens a step")
        if request.gamma > 0 and not has_draft:
            raise RequestInvalid(
                "gamma", request.gamma, "needs a draft and this deployment has none", "leave it unset, or use 0"
            )


def check_tokens(request: generation_pb2.GenerateRequest, vocab_size: int) -> None:
    """Checks the tokens that are named by number. Raises RequestInvalid."""
    for field, tokens in (("stop_token_ids", request.stop_token_ids), ("logit_bias", request.sampling.logit_bias)):
        for token in tokens:
            if token >= vocab_size:
                raise RequestInvalid(
                    field, token, f"is no token of a vocabulary of {vocab_size}", f"use tokens below {vocab_size}"
                )


def _check_sampling(sampling: steps_pb2.Sampling) -> None:
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
    if not 0 <= sampling.min_p <= 1:
        raise RequestInvalid("min_p", sampling.min_p, "is outside [0, 1]", "use 0 for no limit")
    # Here too.
    if not (math.isfinite(sampling.repetition_penalty) and sampling.repetition_penalty >= 0):
        raise RequestInvalid(
            "repetition_penalty", sampling.repetition_penalty, "is not a number > 0", "use 1 for no penalty"
        )
    for field in ("presence_penalty", "frequency_penalty"):
        if not math.isfinite(value := getattr(sampling, field)):
            raise RequestInvalid(field, value, "is not a finite number", "use 0 for no penalty")
    if len(sampling.logit_bias) > MAX_LOGIT_BIASES:
        raise RequestInvalid(
            "logit_bias", f"{len(sampling.logit_bias)} tokens", f"are over {MAX_LOGIT_BIASES}", "bias fewer tokens"
        )
    for token, bias in sampling.logit_bias.items():
        if not math.isfinite(bias):
            raise RequestInvalid(
                "logit_bias", bias, f"of token {token} is not a finite number", "use -10000 to exclude a token"
            )
    if sampling.verification not in steps_pb2.Sampling.Verification.values():
        raise RequestInvalid("verification", sampling.verification, "is unknown", "use coupled or rejection")


def _check_ends(request: generation_pb2.GenerateRequest) -> None:
    if len(request.stop) > MAX_STOPS:
        raise RequestInvalid("stop", f"{len(request.stop)} strings", f"are over {MAX_STOPS}", "give fewer")
    for stop in request.stop:
        if not stop:
            raise RequestInvalid("stop", stop, "is empty", "give the text to stop at, or no string")
        if len(stop) > MAX_STOP_CHARACTERS:
            raise RequestInvalid(
                "stop", f"{len(stop)} characters", f"are over {MAX_STOP_CHARACTERS}", "give a shorter string"
            )
    if len(request.stop_token_ids) > MAX_STOP_TOKENS:
        raise RequestInvalid(
            "stop_token_ids", f"{len(request.stop_token_ids)} tokens", f"are over {MAX_STOP_TOKENS}", "give fewer"
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
