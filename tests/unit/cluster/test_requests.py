"""Which requests are refused before any work is done for them. The fields are tried over gRPC in tests/integration."""

from __future__ import annotations

import pytest

from moespac.cluster.client.errors import InvalidRequest
from moespac.cluster.client.options import generate_request
from moespac.cluster.gateway.requests import (
    MAX_GAMMA,
    MAX_LOGIT_BIASES,
    MAX_LOGPROBS,
    MAX_STOP_CHARACTERS,
    MAX_STOP_TOKENS,
    MAX_STOPS,
    RequestInvalid,
    check_length,
    check_request,
    check_tokens,
)
from moespac.protos.v1 import generation_pb2


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"temperature": 2.0, "top_p": 0.01},
        {"gamma": 0},
        {"gamma": MAX_GAMMA},
        {"model": "tiny"},
        {"seed": 2**64 - 1},
        {"min_p": 1.0, "repetition_penalty": 1e-3, "presence_penalty": -2.0, "frequency_penalty": 2.0},
        {"logit_bias": {0: -1e4, 7: 3.5}, "verification": "rejection"},
        {"stop": "."},
        {"stop": ["x" * MAX_STOP_CHARACTERS] * MAX_STOPS, "stop_token_ids": range(MAX_STOP_TOKENS)},
        {"logprobs": 0},
        {"logprobs": MAX_LOGPROBS},
    ],
)
def test_good_requests_pass(arguments):
    check_request(generate_request("a", **arguments), "tiny", has_draft=True)


def test_unset_fields_of_a_bare_message_mean_their_defaults():
    check_request(generation_pb2.GenerateRequest(prompt="a", max_tokens=1), "tiny", has_draft=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_p": 1.5}, "min_p: 1.5 is outside"),
        ({"min_p": float("nan")}, "min_p: nan is outside"),
        ({"repetition_penalty": -1.0}, "repetition_penalty: -1.0 is not a number > 0: use 1"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty: inf"),
        ({"presence_penalty": float("nan")}, "presence_penalty: nan is not a finite number"),
        ({"frequency_penalty": float("inf")}, "frequency_penalty: inf is not a finite number"),
        ({"logit_bias": {3: float("-inf")}}, "logit_bias: -inf of token 3 is not a finite number: use -10000"),
        ({"logit_bias": dict.fromkeys(range(MAX_LOGIT_BIASES + 1), 1.0)}, "logit_bias: '1025 tokens' are over 1024"),
        ({"stop": ["a", ""]}, "stop: '' is empty"),
        ({"stop": "x" * 257}, "stop: '257 characters' are over 256"),
        ({"stop": ["x"] * 17}, "stop: '17 strings' are over 16"),
        ({"stop_token_ids": [1] * 65}, "stop_token_ids: '65 tokens' are over 64"),
        ({"logprobs": 21}, "logprobs: 21 is above 20"),
    ],
)
def test_bad_options_name_field_value_and_remedy(arguments, message):
    with pytest.raises(RequestInvalid, match=f"^{message}"):
        check_request(generate_request("a", **arguments), "tiny", has_draft=True)


def test_an_unknown_verification_on_the_wire_is_refused():
    request = generation_pb2.GenerateRequest(prompt="a", max_tokens=1)
    request.sampling.verification = 7
    with pytest.raises(RequestInvalid, match=r"^verification: 7 is unknown: use coupled or rejection"):
        check_request(request, "tiny", has_draft=True)


@pytest.mark.parametrize("field", ["stop_token_ids", "logit_bias"])
def test_tokens_beyond_the_vocabulary_are_refused(field):
    request = generate_request("a", **{field: {319: 1.0}})
    check_tokens(request, 320)
    with pytest.raises(RequestInvalid, match=f"^{field}: 319 is no token of a vocabulary of 319: use tokens below 319"):
        check_tokens(request, 319)


def test_gamma_is_on_the_wire_only_when_given():
    assert not generate_request("a").HasField("gamma")
    assert generate_request("a", gamma=0).HasField("gamma")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 1.5),
        ("max_tokens", 2**31),
        ("seed", 2**64),
        ("top_k", "4"),
        ("gamma", -1),
        ("logit_bias", {-1: 1.0}),
        ("stop_token_ids", [-1]),
        ("stop", [7]),
        ("verification", "both"),
        ("logprobs", -1),
        ("repetition_penalty", 0),
        ("stop", 7),
    ],
)
def test_what_the_wire_cannot_hold_names_the_field(field, value):
    with pytest.raises(InvalidRequest, match=f"^{field}: "):
        generate_request("a", **{field: value})


@pytest.mark.parametrize(("prompt", "wanted"), [(1, 255), (255, 1), (128, 128)])
def test_prompt_and_output_may_fill_the_context(prompt, wanted):
    check_length(prompt, wanted, 256)
    with pytest.raises(RequestInvalid, match="256"):
        check_length(prompt, wanted + 1, 256)


def test_prompt_without_tokens():
    with pytest.raises(RequestInvalid, match="has no tokens"):
        check_length(0, 1, 256)
