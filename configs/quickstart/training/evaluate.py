"""Evaluate a pair on held-out text; exit status 1 when a requirement fails.

    python -m moespac.configs.quickstart.training.evaluate --target DIR --draft DIR --text corpora/*.txt.xz

Weights are used as stored and computed in float32. The text is the held-out part of the same files that were trained
on (``data.py``): give the files the training was given.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModelForCausalLM

from .acceptance import speculate, summarise
from .data import load
from .metrics import TextFigures, Window, measure, windows
from .tokenizer import CONTEXT, load_tokenizer

GAMMA = 4
PROMPT_TOKENS = 96
MOST_BITS_PER_BYTE = 1.9
LEAST_CHOICES = 1
LEAST_AGREEMENT = 0.60


def prompts_of(parts: list[Window], count: int) -> list[list[int]]:
    """``count`` prompts of 96 tokens: the starts of held-out windows spread evenly over the text."""
    whole = [part.ids[1 : PROMPT_TOKENS + 1].tolist() for part in parts if len(part.ids) > 2 * PROMPT_TOKENS]
    if not whole:
        raise ValueError("--text: the held-out part is too short to cut prompts from; add text")
    count = min(count, len(whole))
    return [whole[index * len(whole) // count] for index in range(count)]


def unmet(text: TextFigures) -> list[str]:
    """The requirements a pair does not meet, in words."""
    checks = (
        (text.bits_per_byte <= MOST_BITS_PER_BYTE, f"bits per byte above {MOST_BITS_PER_BYTE}"),
        (text.least_choices >= LEAST_CHOICES, "an expert is never chosen in 10,000 tokens"),
        (text.agreement >= LEAST_AGREEMENT, f"greedy agreement below {LEAST_AGREEMENT}"),
    )
    return [message for ok, message in checks if not ok]


def evaluate(args: argparse.Namespace) -> dict:
    """All figures as one JSON-ready object; ``failed`` lists the requirements not met."""
    tokenizer = load_tokenizer(args.target)
    target, draft = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True).eval()
        for path in (args.target, args.draft)
    )
    if load_tokenizer(args.draft).get_vocab() != tokenizer.get_vocab():
        raise ValueError(f"--draft {args.draft}: its tokenizer differs from the target's; a pair shares one tokenizer")
    pieces = [piece for corpus in load(args.text) for piece in corpus.held_out]
    parts = list(windows(tokenizer, pieces, CONTEXT))
    text = measure(target, draft, parts, sum(len(piece.encode()) for piece in pieces))
    generations = [
        speculate(target, draft, prompt, GAMMA, args.new_tokens, tokenizer.eos_token_id)
        for prompt in track(prompts_of(parts, args.prompts), "generating", console=Console(stderr=True))
    ]
    acceptance = {"gamma": GAMMA, **asdict(summarise(generations, GAMMA))}
    return {"text": asdict(text), "acceptance": acceptance, "failed": unmet(text)}


def table_of(figures: dict) -> Table:
    text, acceptance = figures["text"], figures["acceptance"]
    table = Table("figure", "value", "required", title="target and draft on held-out text")
    positions = "  ".join(f"{rate:.3f}" for rate in acceptance["by_position"])
    for row in (
        ("held-out text", f"{text['bytes']:,} bytes, {text['tokens']:,} tokens", ""),
        ("target, bits per byte", f"{text['bits_per_byte']:.3f}", f"<= {MOST_BITS_PER_BYTE}"),
        ("fewest choices of an expert in 10,000 tokens", f"{text['least_choices']}", f">= {LEAST_CHOICES}"),
        ("greedy agreement, draft with target", f"{text['agreement']:.3f}", f">= {LEAST_AGREEMENT}"),
        (f"accepted / proposed, gamma {acceptance['gamma']}", f"{acceptance['rate']:.3f}", ""),
        ("  by draft position", positions, ""),
        ("  tokens per step", f"{acceptance['tokens_per_step']:.2f}", ""),
        ("  generations (looping, left out)", f"{acceptance['generations']} ({acceptance['looping']})", ""),
        ("experts shared by adjacent tokens", f"{text['shared_by_neighbours']:.3f}", ""),
        ("distinct experts a layer over 4 tokens", f"{text['distinct'][4]:.2f}", ""),
        ("distinct experts a layer over 8 tokens", f"{text['distinct'][8]:.2f}", ""),
    ):
        table.add_row(*row)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--draft", type=Path, required=True)
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="the files given to training")
    parser.add_argument("--prompts", type=int, default=96, help="generations for acceptance (default %(default)s)")
    parser.add_argument("--new-tokens", type=int, default=96, help="tokens a generation (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    for path in (args.target, args.draft):
        if not (path / "config.json").is_file():
            parser.error(f"{path}: no model directory (config.json is missing)")
    for path in args.text:
        if not path.is_file():
            parser.error(f"--text {path}: no such file")
    try:
        figures = evaluate(args)
    except ValueError as error:
        parser.error(str(error))
    Console().print(table_of(figures))
    for message in figures["failed"]:
        Console().print(f"requirement not met: {message}", style="red")
    if args.json:
        print(json.dumps(figures))
    raise SystemExit(1 if figures["failed"] else 0)


if __name__ == "__main__":
    main()
