"""What clients ask of the gateway and what they get, against a scripted scheduler over real gRPC."""

from __future__ import annotations

import asyncio
import socket
import time

import grpc
import pytest
from gateway_system import TEXT, error_both, generate_both, use, wait_until
from scripted_scheduler import Script

from moespac.cluster.client import (
    AsyncClient,
    Cancelled,
    Client,
    DeadlineExceeded,
    InvalidRequest,
    ResourceExhausted,
    Unavailable,
    VersionMismatch,
)
from moespac.cluster.client.errors import from_rpc
from moespac.protos.v1 import generation_pb2, generation_pb2_grpc

# ---- what a generation gives ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_event", [1, 3])
def test_text_is_the_tokenizers_and_no_character_is_torn(start, tokens, tokenizer, per_event):
    system = start(Script(tokens, per_event=per_event))
    for pieces, generation in generate_both(system.address, "naïve 🙂", max_tokens=200):
        assert "".join(pieces) == generation.text == TEXT
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
        assert len(pieces) > 20 // per_event
        assert generation.token_ids == tokens
        assert generation.statistics.finish_reason == "stop"
        assert generation.statistics.prompt_tokens == len(tokenizer("naïve 🙂").input_ids)


def test_bytes_that_never_become_a_character_come_at_the_end(start, tokens, tokenizer):
    whole = next(n for n in range(1, len(tokens)) if tokenizer.decode(tokens[:n]).endswith("\N{REPLACEMENT CHARACTER}"))
    system = start(Script(tokens))
    for pieces, generation in generate_both(system.address, "a", max_tokens=whole):
        assert "".join(pieces) == tokenizer.decode(tokens[:whole])
        assert generation.statistics.finish_reason == "length"


def test_request_reaches_the_scheduler_as_given(start, tokens, tokenizer):
    system = start()
    scheduler = system.scheduler(Script(tokens))
    prompt = "wanted<|endoftext|> most été"
    sampling = {"temperature": 0.5, "top_p": 0.75, "top_k": 7, "seed": 2**63 + 1}
    with Client(system.address) as client:
        list(client.generate(prompt, max_tokens=5, gamma=0, ignore_eos=True, timeout=29.5, **sampling))
    (request,) = scheduler.requests
    assert list(request.prompt_ids) == tokenizer(prompt).input_ids
    assert {name: getattr(request.sampling, name) for name in sampling} == sampling
    assert request.max_tokens == 5 and request.ignore_eos and not request.trace
    assert request.HasField("gamma") and request.gamma == 0
    # gRPC sends a timeout in few digits, rounded up.
    assert 0 < scheduler.time_remaining[0] <= 30


def test_spans_come_only_when_asked_for(start, tokens):
    system = start(Script(tokens, trace=["trunk", "draft"]))
    for _, generation in generate_both(system.address, "a", max_tokens=3, trace=True):
        assert [span.row for span in generation.spans] == ["trunk", "draft"] * 3
        assert all(span.end_ns - span.start_ns == 1000 for span in generation.spans)
    for _, generation in generate_both(system.address, "a", max_tokens=3):
        assert generation.spans == []


def test_models_and_status(start, tokens, target):
    system = start(Script(tokens))

    async def ask():
        async with AsyncClient(system.address) as client:
            await client.wait_ready(20)
            return await client.models(), await client.status()

    models, status = asyncio.run(ask())
    with Client(system.address) as client:
        client.wait_ready(20)
        assert client.models() == models
        assert client.status().device == status.device
    (model,) = models
    assert (model.name, model.draft, model.context_length) == (target.name, None, 256)
    assert (model.moe_layers, model.experts_per_layer, model.top_k) == (3, 8, 2)
    assert status.ready and status.deployment == "test" and status.running == 1
    assert [actor.name for actor in status.actors] == ["scheduler"]


# ---- bad requests ---------------------------------------------------------------------------------------------------

BAD = [
    ({"prompt": ""}, "prompt: '' is empty"),
    ({"max_tokens": 0}, "max_tokens: 0 is below 1"),
    ({"max_tokens": -5}, "max_tokens: -5 is below 1"),
    ({"temperature": -0.5}, "temperature: -0.5 is not a number >= 0"),
    ({"temperature": float("nan")}, "temperature: nan is not a number >= 0"),
    ({"temperature": float("inf")}, "temperature: inf is not a number >= 0"),
    ({"top_p": 1.5}, "top_p: 1.5 is outside (0, 1]"),
    ({"top_p": -1.0}, "top_p: -1.0 is outside (0, 1]"),
    ({"top_p": 0.0}, "top_p: 0 is outside (0, 1]"),
    ({"top_p": float("nan")}, "top_p: nan is outside (0, 1]"),
    ({"top_k": -1}, "top_k: -1 cannot be sent"),
    ({"seed": -1}, "seed: -1 cannot be sent"),
    ({"gamma": 17}, "gamma: 17 is above 16"),
    ({"gamma": 4}, "gamma: 4 needs a draft"),
    ({"model": "other"}, "model: 'other' is not served here"),
    ({"prompt": 7}, "prompt: int is not text"),
    (
        {"max_tokens": 250, "prompt": "x" * 10},
        "max_tokens: 250 and the prompt's 10 tokens are 260, over the context of 256 tokens: ask for at most 246",
    ),
    ({"prompt": "x" * (2**22 + 1)}, "prompt: '4194305 characters' is over the limit"),
    ({"prompt": "x" * 300}, "prompt: '300 tokens' leaves no room in the context of 256 tokens"),
]


def test_bad_requests_get_one_clear_error_each(start, tokens):
    system = start()
    scheduler = system.scheduler(Script(tokens))
    for arguments, message in BAD:
        error = error_both(system.address, **({"prompt": "a", "timeout": 30} | arguments))
        assert isinstance(error, InvalidRequest), arguments
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT
        assert message in error.message
    assert scheduler.requests == []


def test_the_schedulers_refusal_is_passed_on(start, tokens):
    system = start(Script(tokens, refuse=("RESOURCE_EXHAUSTED", "no KV cache is left: ask for fewer tokens")))
    error = error_both(system.address, "a")
    assert isinstance(error, ResourceExhausted)
    assert error.message == "no KV cache is left: ask for fewer tokens"


def test_more_requests_than_the_deployment_takes_are_refused(start, tokens):
    system = start(Script(tokens, pause_after=1), max_running=1, max_waiting=1)
    with Client(system.address) as client:
        readers = [iter(client.generate("a")) for _ in range(2)]
        assert all(next(reader) for reader in readers)
        with pytest.raises(ResourceExhausted, match="2 requests are running or waiting"):
            list(client.generate("a"))
        readers[0].close()
        wait_until(lambda: admitted(client))


def admitted(client: Client) -> bool:
    try:
        return bool(next(iter(client.generate("a"))))
    except ResourceExhausted:
        return False


def test_caller_of_another_version_is_refused(start, tokens):
    system = start(Script(tokens))
    with grpc.insecure_channel(system.address) as channel:
        stub = generation_pb2_grpc.GenerationStub(channel)
        with pytest.raises(grpc.RpcError) as error:
            stub.Models(generation_pb2.ModelsRequest(), timeout=10, metadata=(("moespac-version", "0.0.1"),))
    assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "0.0.1" in error.value.details()
    assert isinstance(from_rpc(error.value, system.address), VersionMismatch)


def test_nobody_listening_is_said_with_the_address():
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    error = error_both(f"127.0.0.1:{port}", "a", timeout=10)
    assert isinstance(error, Unavailable)
    assert f"no moespac service answers at 127.0.0.1:{port}" in error.message


# ---- leaving, deadlines ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["break", "cancel", "with", "close"])
def test_client_that_leaves_frees_the_schedulers_stream(start, tokens, how):
    system = start()
    scheduler = system.scheduler(Script(tokens, pause_after=3))
    with Client(system.address) as client:
        if how == "break":
            generation = client.generate("a")  # kept: leaving the loop is enough
            for _ in generation:
                break
        elif how == "with":
            with client.generate("a") as generation:
                next(iter(generation))
        else:
            generation = client.generate("a")
            reader = iter(generation)
            next(reader)
            if how == "cancel":
                generation.cancel()
                with pytest.raises(Cancelled):
                    list(reader)
            else:
                client.close()
        assert scheduler.left.wait(10)


@pytest.mark.parametrize("how", ["break", "cancel", "task"])
def test_async_client_that_leaves_frees_the_schedulers_stream(start, tokens, how):
    system = start()
    scheduler = system.scheduler(Script(tokens, pause_after=3))

    async def run():
        async with AsyncClient(system.address) as client:
            if how == "break":
                generation = client.generate("a")  # kept: leaving the loop is enough
                async for _ in generation:
                    break
            elif how == "cancel":
                generation = client.generate("a")
                with pytest.raises(Cancelled):
                    async for _ in generation:
                        generation.cancel()
            else:
                started = asyncio.Event()

                async def read():
                    async for _ in client.generate("a"):
                        started.set()

                task = asyncio.create_task(read())
                await started.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert await asyncio.to_thread(scheduler.left.wait, 10)

    asyncio.run(run())


def test_deadline_ends_the_generation_everywhere(start, tokens):
    system = start()
    scheduler = system.scheduler(Script(tokens, pause_after=3))
    use(system.address, lambda client: client.wait_ready(20))
    started = time.monotonic()
    error = error_both(system.address, "a", timeout=1.0)
    assert isinstance(error, DeadlineExceeded) and isinstance(error, TimeoutError)
    assert "timeout of 1 s" in error.message
    assert time.monotonic() - started < 12
    assert scheduler.left.wait(10)
