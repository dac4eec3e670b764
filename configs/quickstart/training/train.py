"""Train the bundled pair: ``target`` first (with the tokenizer), then ``draft``, which is distilled from it.

    train="python -m moespac.configs.quickstart.training.train"
    $train target --text corpora/*.txt.xz --work work --out target
    $train draft --text corpora/*.txt.xz --work work --target target --out draft

Run again after an interruption: it goes on from the last checkpoint in ``--work``.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from .data import load
from .loop import Recipe, run
from .losses import distillation_loss, target_loss
from .models import build, draft_config, export, start_draft, target_config
from .tokenizer import encode, load_tokenizer, train_tokenizer


def streams_of(texts: list[Path], tokenizer: PreTrainedTokenizerFast) -> tuple:
    """One uint16 token stream a file, from its training part."""
    return tuple(encode(tokenizer, corpus.train) for corpus in load(texts))


def train_target(args: argparse.Namespace) -> None:
    directory = args.work / "tokenizer"
    if not (directory / "tokenizer.json").exists():
        train_tokenizer(piece for corpus in load(args.text) for piece in corpus.train).save_pretrained(directory)
    tokenizer = load_tokenizer(directory)
    model = build(target_config(), args.seed)
    recipe = Recipe(args.tokens, args.learning_rate, seed=args.seed)
    run(
        model,
        partial(target_loss, model),
        streams_of(args.text, tokenizer),
        recipe,
        args.work / "target.pt",
        workers=args.workers,
        stop_after=args.stop_after,
    )
    export(model, tokenizer, args.out)


def train_draft(args: argparse.Namespace) -> None:
    tokenizer = load_tokenizer(args.target)
    # The target as it is shipped: stored in bfloat16, computed in float32.
    target = build(target_config(), args.seed)
    target.load_state_dict(type(target).from_pretrained(args.target, dtype=torch.float32).state_dict())
    target.eval()
    draft = build(draft_config(), args.seed)
    start_draft(draft, target)
    recipe = Recipe(args.tokens, args.learning_rate, seed=args.seed + 1)
    run(
        draft,
        partial(distillation_loss, draft, target),
        streams_of(args.text, tokenizer),
        recipe,
        args.work / "draft.pt",
        workers=args.workers,
        stop_after=args.stop_after,
        label="disagreement",
    )
    export(draft, tokenizer, args.out)


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = main.add_subparsers(required=True, metavar="{target,draft}")
    for name, stage, tokens, rate in (
        ("target", train_target, 5_000_000, 2.5e-3),
        ("draft", train_draft, 3_500_000, 2e-3),
    ):
        sub = stages.add_parser(name, help=f"train the {name}")
        sub.set_defaults(stage=stage)
        sub.add_argument("--text", type=Path, nargs="+", required=True, help="text files, plain or .xz")
        sub.add_argument("--work", type=Path, required=True, help="folder for checkpoints and the tokenizer")
        sub.add_argument("--out", type=Path, required=True, help="Hugging Face directory to write")
        sub.add_argument("--tokens", type=int, default=tokens, help="token budget (default %(default)s)")
        sub.add_argument("--learning-rate", type=float, default=rate, help="peak (default %(default)s)")
        sub.add_argument("--seed", type=int, default=1)
        sub.add_argument("--workers", type=int, default=2, help="threads, one core each (default %(default)s)")
        sub.add_argument("--stop-after", type=int, help="stop after this many steps in all, with a checkpoint")
        if name == "draft":
            sub.add_argument("--target", type=Path, required=True, help="directory of the trained target")
    return main


def main() -> None:
    arguments = parser()
    args = arguments.parse_args()
    for path in args.text:
        if not path.is_file():
            arguments.error(f"--text {path}: no such file")
    if args.tokens < 1:
        arguments.error(f"--tokens {args.tokens}: must be positive")
    if args.workers < 1:
        arguments.error(f"--workers {args.workers}: must be positive")
    args.stage(args)


if __name__ == "__main__":
    main()
