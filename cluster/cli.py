"""The `moespac` command. Every command imports what it needs only when it runs: `--help` stays quick."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError
from ..version import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Serve Mixture-of-Experts models that do not fit in the accelerator.",
)

Server = Annotated[str, typer.Option(help="host:port of the service.")]
DEFAULT_SERVER = "localhost:50051"


def main() -> None:
    """Runs the command; bad input ends in one clear message on stderr and status 1."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"moespac {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """What this machine has, what will be used, and why."""
    from .doctor import run_doctor

    raise typer.Exit(run_doctor(as_json))


@app.command()
def check(config: Annotated[Path, typer.Argument(help="Deployment file.")]) -> None:
    """Validate a deployment without starting anything."""
    from .check import run_check

    raise typer.Exit(run_check(config))


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Hugging Face checkpoint folder.")],
    store: Annotated[Path, typer.Argument(help="Folder of the expert store to make.")],
    experts: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT",
            help="bfloat16, float16, float32, int8, int4 (int4-g32) or int4-g128; without it, as in the checkpoint.",
        ),
    ] = None,
    scales: Annotated[str, typer.Option(metavar="TYPE", help="Of int4's scales: float16 or bfloat16.")] = "float16",
    report: Annotated[
        Path | None, typer.Option(help="Text to measure on what the conversion changes; prints a table.")
    ] = None,
) -> None:
    """Convert a checkpoint's experts into an expert store. Interrupted, it goes on from there when run again."""
    from .conversion import run_convert

    run_convert(checkpoint, store, experts, scales, report)


@app.command()
def serve(
    config: Annotated[Path, typer.Argument(help="Deployment file.")],
    address: Annotated[
        str | None, typer.Option(help="Join this running Ray cluster; without it, a private one is started.")
    ] = None,
    detach: Annotated[bool, typer.Option(help="Leave the actors running in the joined cluster and return.")] = False,
    port: Annotated[int | None, typer.Option(help="Instead of the deployment's port; 0: a free one.")] = None,
) -> None:
    """Start a deployment and serve until Ctrl-C."""
    from ..configs import load_deployment
    from .check import require_fit
    from .interrupts import Interrupts
    from .progress import conversion_bar, start_bars
    from .serve import Service, run_until_interrupted, with_port

    interrupts = Interrupts()
    if detach and address is None:
        raise typer.BadParameter("--detach needs --address: a private cluster ends with this command")
    deployment = load_deployment(config)
    if port is not None:
        deployment = with_port(deployment, port)
    require_fit(config, deployment)
    with start_bars() as report, conversion_bar(deployment.model.target.name) as convert_report:
        service = Service(deployment, address, detach, report, convert_report, interrupts.held)
        service.start()
    typer.echo(f"serving {deployment.model.target.name} at {service.server} (deployment {deployment.name!r})")
    if deployment.service.metrics_port is not None:
        typer.echo(f"metrics at {service.metrics_url()}")
    if detach:
        service.leave()
        typer.echo(f"detached: `moespac stop {deployment.name}` ends it")
        return
    try:
        run_until_interrupted(service)
    finally:
        service.stop(0.0)


@app.command()
def profile(
    config: Annotated[Path, typer.Argument(help="Deployment file.")],
    as_json: Annotated[bool, typer.Option("--json", help="End with one line of JSON.")] = False,
) -> None:
    """Measure what experts, calls and transfers of a deployment cost here, for its next start to begin with."""
    from .profile import run_profile

    run_profile(config, as_json)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="Text to continue; - reads standard input.")],
    server: Server = DEFAULT_SERVER,
    max_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 128,
    temperature: Annotated[float, typer.Option(help="0: greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus: smallest set of tokens with this probability.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Most probable tokens only; 0: all.")] = 0,
    min_p: Annotated[float, typer.Option(help="Least share of the most probable token's probability; 0: all.")] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Of tokens in prompt and output; above 1 they become rarer.")
    ] = 1.0,
    presence_penalty: Annotated[float, typer.Option(help="Taken off the logits of the output's tokens.")] = 0.0,
    frequency_penalty: Annotated[float, typer.Option(help="The same for every time a token is there.")] = 0.0,
    logit_bias: Annotated[
        list[str] | None, typer.Option(metavar="TOKEN=BIAS", help="Added to a token's logit; may be repeated.")
    ] = None,
    verification: Annotated[
        str, typer.Option(help="Of drafts: coupled, or rejection (equal in distribution only).")
    ] = "coupled",
    seed: Annotated[int, typer.Option(help="Of the sampling noise.")] = 0,
    gamma: Annotated[int | None, typer.Option(help="Draft tokens a step; changes speed, never the text.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")] = None,
    stop_token: Annotated[list[int] | None, typer.Option(help="End at this token id; may be repeated.")] = None,
    ignore_eos: Annotated[bool, typer.Option(help="Go on past the end-of-text token.")] = False,
    logprobs: Annotated[
        int | None, typer.Option(help="With --json: log-probabilities, and those of so many most probable tokens.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds for the whole generation.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Write a timeline in Chrome trace format (open it in Perfetto).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Generate text with a running service."""
    from .client import Client
    from .report import generation_table
    from .timeline import write_trace

    if logprobs is not None and not as_json:
        raise typer.BadParameter("--logprobs needs --json: the text alone does not show them")
    text = sys.stdin.read() if prompt == "-" else prompt
    with Client(server) as client:
        generation = client.generate(
            text,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            logit_bias=_biases(logit_bias or []),
            verification=verification,
            seed=seed,
            gamma=gamma,
            stop=stop or [],
            stop_token_ids=stop_token or [],
            ignore_eos=ignore_eos,
            logprobs=logprobs,
            trace=trace is not None,
            timeout=timeout,
        )
        for piece in generation:
            if not as_json:
                print(piece, end="", flush=True)
    statistics = generation.statistics
    if as_json:
        answer = {"text": generation.text, "token_ids": list(generation.token_ids), **asdict(statistics)}
        if logprobs is not None:
            answer["logprobs"] = [asdict(entry) for entry in generation.logprobs]
        print(json.dumps(answer))
    else:
        from rich.console import Console

        print()
        Console(stderr=True).print(generation_table(statistics))
    if trace is not None:
        write_trace(trace, generation.spans)
        typer.echo(f"timeline: {trace} (open it at ui.perfetto.dev)", err=True)


def _biases(entries: list[str]) -> dict[int, float]:
    biases = {}
    for entry in entries:
        token, _, bias = entry.partition("=")
        try:
            biases[int(token)] = float(bias)
        except ValueError:
            raise typer.BadParameter(f"--logit-bias: {entry!r} is not TOKEN=BIAS, as in 50256=-10000") from None
    return biases


@app.command()
def status(
    server: Server = DEFAULT_SERVER,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show a running service: actors, memory, requests, and what has been decided and done."""
    from .client import Client
    from .report import status_table
    from .status_report import decisions_table

    with Client(server) as client:
        reply = client.status()
    if as_json:
        from google.protobuf.json_format import MessageToDict

        print(
            json.dumps(
                MessageToDict(reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
            )
        )
    else:
        from rich.console import Console

        console = Console()
        console.print(status_table(reply))
        console.print(decisions_table(reply))
    raise typer.Exit(0 if reply.ready else 2)


@app.command()
def stop(
    name: Annotated[str | None, typer.Argument(help="Deployment; may be left out when only one runs.")] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds to wait for its end; without it, as long as its requests may take.")
    ] = None,
) -> None:
    """Stop a service that runs on this machine."""
    from . import run_record
    from .stopping import StopFailed, stop_recorded

    running = {record.name: record for record in run_record.records()}
    if name is None:
        if len(running) != 1:
            raise StopFailed(
                f"{len(running)} services run here ({', '.join(running) or 'none'}): name the one to stop"
                if running
                else "no service runs on this machine"
            )
        (name,) = running
    if name not in running:
        raise StopFailed(f"no service {name!r} runs on this machine (running: {', '.join(running) or 'none'})")
    stop_recorded(running[name], timeout)
    typer.echo(f"stopped {name}")


@app.command()
def simulate(
    trace: Annotated[list[Path] | None, typer.Option(help="Router trace, *.npz; may be given several times.")] = None,
    policy: Annotated[
        str, typer.Option(help="Policies, separated by commas.")
    ] = "llama.cpp-sd,moe-spac-described,moespac,clairvoyant",
    hardware: Annotated[Path | None, typer.Option(help="Hardware file; without it, the paper's machine.")] = None,
    window: Annotated[int, typer.Option(help="Tokens of a verification, the drafted ones and one.")] = 9,
    cache_ratio: Annotated[
        list[float] | None, typer.Option(help="Share of all experts that have a slot; may be given several times.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Replayed of each trace, from its start; 0: all, with --paper 1000.")] = 0,
    drafts: Annotated[str, typer.Option(help="rate (the hardware file's acceptance) or ngram.")] = "rate",
    paper: Annotated[bool, typer.Option(help="The comparison of the MoE-SpAc paper, with sensitivities.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Write policies × cache ratios as an SVG picture.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare offloading policies on recorded routing and a described machine, on a simulated clock."""
    from .simulator.command import run_paper, run_simulate

    if paper:
        run_paper(trace or [], tokens, as_json)
    else:
        run_simulate(trace or [], policy, hardware, window, cache_ratio or [0.17], tokens, drafts, as_json, picture)


@app.command()
def quickstart(
    prompt: Annotated[str | None, typer.Option(help="Text to continue.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 128,
    trace: Annotated[Path | None, typer.Option(help="Write a timeline in Chrome trace format.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one line of JSON.")] = False,
) -> None:
    """Start the bundled models on this machine, generate, compare with plain transformers, shut down."""
    from .quickstart import DEFAULT_PROMPT, quickstart_deployment, run_quickstart

    raise typer.Exit(run_quickstart(quickstart_deployment(), prompt or DEFAULT_PROMPT, max_tokens, trace, as_json))
