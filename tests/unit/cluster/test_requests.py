"""Which requests are refused before any work is done for them. The fields are tried over gRPC in tests/integration."""

from __future__ import annotations

import pytest

from moespac.cluster.client.calls import generate_request
from moespac.cluster.client.errors import InvalidRequest
from moespac.cluster.gateway.requests import MAX_GAMMA, RequestInvalid, check_length, check_request
from moespac.protos.v1 import generation_pb2

DEFAULTS = {
    "max_tokens": 1,
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "seed": 0,
    "gamma": None,
    "trace": False,
    "ignore_eos": False,
    "model": "",
}


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"temperature": 2.0, "top_p": 0.01},
        {"gamma": 0},
        {"gamma": MAX_GAMMA},
        {"model": "tiny"},
        {"seed": 2**64 - 1},
    ],
)
def test_good_requests_pass(arguments):
    check_request(generate_request("a", **(DEFAULTS | arguments)), "tiny", has_draft=True)


def test_unset_fields_of_a_bare_message_mean_their_defaults():
    check_request(generation_pb2.GenerateRequest(prompt="a", max_tokens=1), "tiny", has_draft=False)


def test_gamma_is_on_the_wire_only_when_given():
    assert not generate_request("a", **DEFAULTS).HasField("gamma")
    assert generate_request("a", **(DEFAULTS | {"gamma": 0})).HasField("gamma")


@pytest.mark.parametrize(
    ("field", "value"), [("max_tokens", 1.5), ("max_tokens", 2**31), ("seed", 2**64), ("top_k", "4"), ("gamma", -1)]
)
def test_what_the_wire_cannot_hold_names_the_field(field, value):
    with pytest.raises(InvalidRequest, match=f"^{field}: "):
        generate_request("a", **(DEFAULTS | {field: value}))


@pytest.mark.parametrize(("prompt", "wanted"), [(1, 255), (255, 1), (128, 128)])
def test_prompt_and_output_may_fill_the_context(prompt, wanted):
    check_length(prompt, wanted, 256)
    with pytest.raises(RequestInvalid, match="256"):
        check_length(prompt, wanted + 1, 256)


def test_prompt_without_tokens():
    with pytest.raises(RequestInvalid, match="has no tokens"):
        check_length(0, 1, 256)
