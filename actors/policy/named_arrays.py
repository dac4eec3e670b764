"""Arrays by dotted names: how the parts of a learned state are kept side by side."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def part_of(state: Mapping[str, np.ndarray], part: str) -> dict[str, np.ndarray]:
    """The arrays named `part`.…, by the rest of their names."""
    prefix = f"{part}."
    return {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}


def as_part(arrays: Mapping[str, np.ndarray], part: str) -> dict[str, np.ndarray]:
    """`arrays`, each named `part`.name: what `part_of` undoes."""
    return {f"{part}.{name}": array for name, array in arrays.items()}
