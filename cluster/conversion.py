"""`moespac convert`: makes an expert store and says what that did to the weights."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from ..actors.prefetcher.convert import Conversion
from ..actors.prefetcher.convert import convert as convert_checkpoint
from ..configs.units import show_size
from ..errors import UserError
from .progress import conversion_bar, measuring_bar


class UnreadableText(UserError, ValueError):
    """The text to measure on cannot be used."""


def run_convert(
    checkpoint: Path, store: Path, format: str | None, scale_dtype: str, report_on: Path | None = None
) -> None:
    """Converts, and prints what became of the weights; with `report_on`, a text file, also of the model's predictions.

    Raises what `convert` does, and UnreadableText before anything is converted.
    """
    text = None if report_on is None else _text(report_on)
    with conversion_bar(checkpoint.name) as progress:
        try:
            made = convert_checkpoint(checkpoint, store, progress, format, scale_dtype)
        except KeyboardInterrupt:
            Console(stderr=True).print("interrupted: the same command goes on from here")
            raise
    console = Console()
    for line in summary(made):
        console.print(Text(line), soft_wrap=True)
    if text is not None:
        from .quality import quality_report, report_table

        with measuring_bar(checkpoint.name, "tokens") as progress:
            report = quality_report(checkpoint, store, text, progress)
        console.print(report_table(report))
    console.print(Text(f"expert store: {store}"), soft_wrap=True)


def summary(made: Conversion) -> list[str]:
    """What a conversion did, in a line or two."""
    lines = [f"{made.experts} experts of {show_size(made.layout.expert_bytes)} in {made.layout.format}"]
    if made.taken_over:
        lines[0] += f", {made.taken_over} of them from a conversion that was ended half-way"
    if made.layout.format != made.source_format:
        errors = made.weight_errors
        worst = max(errors, key=lambda layer: errors[layer])
        mean = sum(errors.values()) / len(errors)
        lines.append(
            f"relative RMS error of the weights against {made.source_format}: {mean:.3%} on average, "
            f"{errors[worst]:.3%} in layer {worst}, the worst"
        )
        lines.append("by layer: " + "  ".join(f"{layer}: {error:.3%}" for layer, error in errors.items()))
    return lines


def _text(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableText(f"--report {file}: cannot be read as text ({error}); give a UTF-8 text file") from error
    if not text.strip():
        raise UnreadableText(f"--report {file}: is empty; give a text like those that the model will see")
    return text
