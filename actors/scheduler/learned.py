"""What an estimator has learned, kept in a file beside the expert store, so that a restart is warm."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import structlog

from ..replaced_file import replace_file

log = structlog.get_logger()

MAX_BYTES = 256 << 20
"""Largest state that is written or read."""
_OWNER = "__owner__"


class LearnedFile:
    """One file for one estimator of one model. `fingerprint`: identity of the model's weights."""

    def __init__(self, store: Path, estimator: str, fingerprint: str) -> None:
        self.path = store.with_name(f"{store.name}.{estimator}.npz")
        self._owner = f"{estimator} {fingerprint}"

    def save(self, state: Mapping[str, np.ndarray]) -> None:
        """Replaces the file in one step; what cannot be written is logged and left."""
        size = sum(np.asarray(array).nbytes for array in state.values())
        if not state or size > MAX_BYTES:
            if state:
                log.warning("estimator not saved: it is too large", path=str(self.path), bytes=size, limit=MAX_BYTES)
            return
        if broken := _not_finite(state):
            log.error("estimator not saved: it has learned nonsense", path=str(self.path), array=broken)
            return
        try:
            replace_file(self.path, lambda file: np.savez(file, **{_OWNER: np.array(self._owner)}, **state))
        except OSError as error:
            log.warning("estimator not saved", path=str(self.path), reason=str(error))

    def load(self) -> dict[str, np.ndarray] | None:
        """What was saved last; None, with the reason in the log, where it is of no use here."""
        if not self.path.exists():
            return None
        try:
            if self.path.stat().st_size > MAX_BYTES + (1 << 20):
                raise ValueError(f"it is larger than {MAX_BYTES} bytes")
            with np.load(self.path, allow_pickle=False) as file:
                owner = str(file[_OWNER])
                if owner != self._owner:
                    raise ValueError(f"it is of {owner!r}, this is {self._owner!r}")
                state = {name: file[name] for name in file.files if name != _OWNER}
            if broken := _not_finite(state):
                raise ValueError(f"{broken} holds numbers that are not finite")
            return state
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            log.warning("estimator starts cold: its file is refused", path=str(self.path), reason=str(error))
            return None


def _not_finite(state: Mapping[str, np.ndarray]) -> str:
    """The first array that holds NaN or infinity; empty: none does."""
    arrays = ((name, np.asarray(array)) for name, array in state.items())
    return next((name for name, array in arrays if array.dtype.kind == "f" and not np.isfinite(array).all()), "")
