"""Sampling and log-probabilities over the wire. Numbers are single precision there: these are exact in it."""

from dataclasses import fields

from moespac.actors.core import Sampling, TokenLogprobs
from moespac.actors.transport.messages import (
    logprobs_from_proto,
    logprobs_to_proto,
    sampling_from_proto,
    sampling_to_proto,
)
from moespac.protos.v1 import steps_pb2 as pb

CHANGED = Sampling(
    temperature=0.5,
    top_p=0.75,
    top_k=7,
    seed=2**64 - 1,
    min_p=0.125,
    repetition_penalty=1.5,
    presence_penalty=-0.5,
    frequency_penalty=0.25,
    logit_bias=((3, -1.5), (9, 4.0)),
    verification="rejection",
)


def test_every_field_survives():
    assert all(getattr(CHANGED, field.name) != field.default for field in fields(Sampling)), "a field is not tried"
    for sampling in (Sampling(), CHANGED):
        assert sampling_from_proto(pb.Sampling.FromString(sampling_to_proto(sampling).SerializeToString())) == sampling


def test_an_empty_message_is_the_default():
    assert sampling_from_proto(pb.Sampling()) == Sampling()


def test_log_probabilities_survive():
    for logprobs in (TokenLogprobs(5, -0.5), TokenLogprobs(5, -0.5, ((7, -0.25), (5, -0.5)))):
        assert logprobs_from_proto(logprobs_to_proto(logprobs)) == logprobs
