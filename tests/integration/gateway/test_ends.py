"""Where a generation ends: stop strings, stop tokens and limits, with a real tokenizer and a scripted scheduler."""

from __future__ import annotations

import threading

import grpc
import pytest
from gateway_system import TEXT, error_both, generate_both, use
from scripted_scheduler import Script, ScriptedScheduler

from moespac.cluster.client import Client


@pytest.mark.parametrize("per_event", [1, 4, 100])
@pytest.mark.parametrize("stop", ["é: 東", "京", " 🙂 n", TEXT[-3:]])
def test_a_stop_string_across_tokens_and_bytes(start, tokens, tokenizer, per_event, stop):
    system = start()
    scheduler = system.scheduler(Script(tokens, per_event=per_event))
    counts = set()
    for pieces, generation in generate_both(system.address, "a", max_tokens=200, stop=["never", stop], logprobs=0):
        assert "".join(pieces) == generation.text == TEXT[: TEXT.index(stop)]
        statistics = generation.statistics
        assert (statistics.finish_reason, statistics.stop, statistics.stop_token_id) == ("stop", stop, None)
        # The tokens end with the one that completed the stop string, whatever the events' size.
        assert stop in tokenizer.decode(generation.token_ids)
        assert stop not in tokenizer.decode(generation.token_ids[:-1])
        assert statistics.tokens == len(generation.token_ids) == len(generation.logprobs)
        assert [entry.token for entry in generation.logprobs] == generation.token_ids
        counts.add(statistics.tokens)
    assert len(counts) == 1 and len(scheduler.requests) == 2


def test_the_scheduler_is_told_at_once(start, tokens):
    """It would say nothing more for ever: only the gateway's word ends the stream."""
    system = start()
    scheduler = system.scheduler(Script(tokens, pause_after=12))
    text = use(system.address, lambda client: list(client.generate("a", max_tokens=200, stop="expert", timeout=20)))
    assert "".join(text) == "the "
    assert scheduler.finished == [scheduler.requests[0].request_id]


def test_a_scheduler_that_does_not_end_the_request_does_not_hold_the_client(start, tokens):
    system = start(Script(tokens, never_finish=True))
    for _, generation in generate_both(system.address, "a", max_tokens=200, stop="expert", timeout=20):
        assert generation.text == "the " and generation.statistics.stop == "expert"


def test_what_only_began_as_a_stop_string_is_text(start, tokens):
    system = start(Script(tokens))
    for pieces, generation in generate_both(system.address, "a", max_tokens=10, stop=[TEXT[6:40]]):
        assert "".join(pieces) == TEXT[:10] and generation.statistics.finish_reason == "length"
        assert generation.statistics.stop is None


def test_replacement_characters_at_the_end_can_be_a_stop_string(start, tokens, tokenizer):
    whole = next(n for n in range(1, len(tokens)) if tokenizer.decode(tokens[:n]).endswith("\N{REPLACEMENT CHARACTER}"))
    system = start(Script(tokens))
    for _, generation in generate_both(system.address, "a", max_tokens=whole, stop="\N{REPLACEMENT CHARACTER}"):
        assert generation.text == tokenizer.decode(tokens[:whole]).rstrip("\N{REPLACEMENT CHARACTER}")
        assert generation.statistics.finish_reason == "stop" and len(generation.token_ids) == whole


def test_stop_tokens_and_options_reach_the_scheduler(start, tokens):
    system = start()
    scheduler = system.scheduler(Script(tokens))
    options = {"min_p": 0.25, "repetition_penalty": 1.5, "presence_penalty": -0.5, "frequency_penalty": 0.75}
    use(
        system.address,
        lambda client: list(
            client.generate(
                "a", max_tokens=2, stop_token_ids=[7, 9], logit_bias={3: -1.5}, verification="rejection", **options
            )
        ),
    )
    (request,) = scheduler.requests
    assert list(request.stop_token_ids) == [7, 9] and not request.HasField("logprobs")
    assert {name: getattr(request.sampling, name) for name in options} == options
    assert dict(request.sampling.logit_bias) == {3: -1.5}
    assert request.sampling.verification == request.sampling.REJECTION


def test_a_scheduler_lost_behind_the_stop_string_is_not_asked_again(start, tokens):
    class Dying(ScriptedScheduler):
        def Finish(self, request, context):
            threading.Thread(target=self.stop).start()
            context.abort(grpc.StatusCode.UNAVAILABLE, "dying")

    system = start()
    scheduler = system.scheduler(Script(tokens, pause_after=12), kind=Dying)
    with Client(system.address) as client:
        generation = client.generate("a", max_tokens=200, stop="expert", timeout=20)
        assert "".join(generation) == "the "
    assert generation.statistics.finish_reason == "stop" and generation.statistics.stop == "expert"
    assert generation.statistics.tokens == len(generation.token_ids) == 10 and len(scheduler.requests) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stop": [""]}, "stop: '' is empty: give the text to stop at"),
        ({"stop_token_ids": [320]}, "stop_token_ids: 320 is no token of a vocabulary of 320: use tokens below 320"),
        ({"logit_bias": {400: 1.0}}, "logit_bias: 400 is no token of a vocabulary of 320"),
        ({"min_p": -0.5}, "min_p: -0.5 is outside [0, 1]: use 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: 0 is not above 0: use 1"),
        ({"verification": "none"}, "verification: 'none' cannot be sent: use coupled or rejection"),
        ({"logprobs": 21}, "logprobs: 21 is above 20"),
    ],
)
def test_bad_values_are_refused_by_name(start, tokens, arguments, message):
    system = start(Script(tokens))
    assert error_both(system.address, "a", **arguments).message.startswith(message)
