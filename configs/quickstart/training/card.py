"""Write the two model cards from what the evaluation printed.

python -m moespac.configs.quickstart.training.card --figures evaluation.json --target DIR --draft DIR
"""

import argparse
import json
from pathlib import Path

DATA = """\
| text | what it is | licence |
|---|---|---|
| python_peps | 751 Python Enhancement Proposals | public domain or CC0 |
| eips | 949 Ethereum Improvement Proposals | CC0 |
| rust_book | The Rust Programming Language | MIT or Apache-2.0 |
| thealgorithms_python | Python code of TheAlgorithms | MIT |
| shakespeare, tinyshakespeare | plays | public domain |
| inaugural, state_union | addresses of presidents of the United States | public domain |
| gutenberg | The Adventures of Sherlock Holmes | public domain |

About 32 MB; 2 % of every file was held out (contiguous blocks, chosen by position), and paragraphs of the held-out part
that occur again elsewhere were taken out of training."""

HEAD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
"""

HISTORY = {
    "target": "The run behind these weights was stopped and resumed several times, and the term that wakes starved "
    "experts joined the loss at about step 1,800 of 2,441: the command repeats the recipe, not these very bits.",
    "draft": "The target's weights were used as stored here.",
}

LIMITS = """\
## Limits

A model of this size, trained for about an hour on two CPU cores, writes text that looks like its corpora and means
little. It is made to exercise Mixture-of-Experts serving with a router that was really trained; it is not made to be
read, and answers nothing reliably. Contexts up to 1,024 tokens. English, Python and a little Rust; text in other
scripts is tokenized byte by byte."""


def figures_table(figures: dict) -> str:
    """Markdown table of the evaluation's figures."""
    text, acceptance = figures["text"], figures["acceptance"]
    positions = ", ".join(f"{rate:.2f}" for rate in acceptance["by_position"])
    rows = (
        ("held-out text", f"{text['bytes']:,} bytes, {text['tokens']:,} tokens"),
        ("target, bits per byte", f"{text['bits_per_byte']:.3f}"),
        ("fewest choices of any (layer, expert) in 10,000 tokens", str(text["least_choices"])),
        ("greedy agreement of the draft with the target, a position", f"{text['agreement']:.3f}"),
        (f"accepted / proposed, greedy, gamma = {acceptance['gamma']}", f"{acceptance['rate']:.3f}"),
        ("the same by draft position", positions),
        ("tokens a step", f"{acceptance['tokens_per_step']:.2f}"),
        ("generations measured (looping, left out)", f"{acceptance['generations']} ({acceptance['looping']})"),
        ("experts shared by adjacent tokens", f"{text['shared_by_neighbours']:.3f}"),
        ("distinct experts a layer over 4 / 8 tokens", f"{text['distinct']['4']:.1f} / {text['distinct']['8']:.1f}"),
    )
    return "\n".join(["| figure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def card(role: str, figures: dict, tokens: dict[str, int]) -> str:
    """The model card of ``role`` (``target`` or ``draft``); ``tokens`` gives each one's training budget."""
    module = "python -m moespac.configs.quickstart.training"
    what = {
        "target": "Qwen3-MoE architecture, 15.3 M parameters (4.3 M active a token): 8 layers, 32 experts a layer of "
        "which 4 are chosen, hidden size 256, expert intermediate size 64, vocabulary 4,096, tied embeddings. The "
        "router was trained with a load-balancing coefficient of 0.001 a layer, and a term that only wakes starved "
        "experts, so its use of experts stays skewed.",
        "draft": "Dense Qwen3 architecture, 2.5 M parameters: 3 layers, hidden size 256, the target's tokenizer. Its "
        "embedding, norms and attention started from the target's; it was then distilled from the target (KL "
        "divergence plus cross-entropy to the target's greedy token) to draft for it in speculative decoding.",
    }[role]
    command = f"{module}.train {role} --text corpora/*.txt.xz --work work --tokens {tokens[role]}"
    command += " --out target" if role == "target" else " --target target --out draft"
    return f"""{HEAD}
# moespac quickstart {role}

{what} Weights are stored in bfloat16; the figures below compute them in float32.

Licence: Apache-2.0.

## Data

{DATA}

## Training

```
{command}
```

Seed 1, AdamW, {tokens[role]:,} tokens. The tokenizer is a byte-level BPE trained on the training part. {HISTORY[role]}

## Figures

On the held-out part, target and draft together:

{figures_table(figures)}

```
{module}.evaluate --target target --draft draft --text corpora/*.txt.xz
```

{LIMITS}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", type=Path, required=True, help="file whose last line is evaluate's --json object")
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--draft", type=Path, required=True)
    parser.add_argument("--target-tokens", type=int, required=True, help="budget the target was trained with")
    parser.add_argument("--draft-tokens", type=int, required=True, help="budget the draft was trained with")
    args = parser.parse_args()
    figures = json.loads(args.figures.read_text().strip().splitlines()[-1])
    tokens = {"target": args.target_tokens, "draft": args.draft_tokens}
    for role, directory in (("target", args.target), ("draft", args.draft)):
        (directory / "README.md").write_text(card(role, figures, tokens))


if __name__ == "__main__":
    main()
