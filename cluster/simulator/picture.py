"""Policies × cache ratios as a picture: bars of tokens per second, drawn as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from ...errors import UserError
from .run import Case
from .tally import Tally

WIDTH, BAR, GAP, LEFT, TOP = 900, 16, 14, 190, 60
SHADES = ("#08519c", "#3182bd", "#6baed6", "#9ecae1", "#c6dbef", "#d9d9d9")
"""One a cache ratio, taken in turn."""


class UnwritablePicture(UserError, OSError):
    """The picture's file cannot be written."""


def write_picture(path: Path, results: Sequence[tuple[Case, Tally]]) -> None:
    """Writes an SVG file. A bar is the tokens per second over all traces. Raises UnwritablePicture."""
    if path.suffix.lower() != ".svg":
        raise UnwritablePicture(f"--picture {path}: pictures are SVG; name the file *.svg")
    try:
        path.write_text(picture(results), encoding="utf-8")
    except OSError as error:
        raise UnwritablePicture(f"--picture {path}: cannot be written ({error.strerror}); name another file") from error


def picture(results: Sequence[tuple[Case, Tally]]) -> str:
    """The SVG document."""
    sums: dict[tuple[str, float], Tally] = {}
    for case, tally in results:
        sums.setdefault((case.policy, case.cache_ratio), Tally()).add(tally)
    policies = list(dict.fromkeys(policy for policy, _ in sums))
    ratios = sorted({ratio for _, ratio in sums})
    speeds = {key: tally.summary()["tokens_per_s"] for key, tally in sums.items()}
    scale = (WIDTH - LEFT - 80) / max(speeds.values())
    group = BAR * len(ratios) + GAP
    height = TOP + group * len(policies) + 20
    machine = escape(results[0][0].hardware.name)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" '
        'font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="20" font-size="14">tokens per second, simulated: {machine}</text>',
    ]
    for i, ratio in enumerate(ratios):
        x = LEFT + 110 * i
        lines.append(f'<rect x="{x}" y="32" width="12" height="12" fill="{SHADES[i % len(SHADES)]}"/>')
        lines.append(f'<text x="{x + 17}" y="43">cache {ratio:.0%}</text>')
    for p, policy in enumerate(policies):
        top = TOP + p * group
        lines.append(f'<text x="{LEFT - 8}" y="{top + group / 2}" text-anchor="end">{escape(policy)}</text>')
        for i, ratio in enumerate(ratios):
            speed, y = speeds[policy, ratio], top + i * BAR
            fill = SHADES[i % len(SHADES)]
            lines.append(f'<rect x="{LEFT}" y="{y}" width="{speed * scale:.1f}" height="{BAR - 2}" fill="{fill}"/>')
            lines.append(f'<text x="{LEFT + speed * scale + 5:.1f}" y="{y + BAR - 4}">{speed:.1f}</text>')
    return "\n".join([*lines, "</svg>", ""])
