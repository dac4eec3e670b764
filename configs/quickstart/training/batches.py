"""Which tokens a step sees: a function of seed and step alone, so a resumed run reads what an unbroken one reads."""

from dataclasses import dataclass

import numpy as np
import torch

MIX_EXPONENT = 0.75  # a file's weight is its tokens to this power: small files are mildly upsampled


@dataclass(frozen=True)
class Batches:
    """Batches of ``rows`` sequences of ``length`` tokens (and the next token of each) from several token streams."""

    streams: tuple[np.ndarray, ...]
    rows: int
    length: int
    seed: int

    def __post_init__(self) -> None:
        shortest = min(len(stream) for stream in self.streams)
        if shortest <= 2 * self.length:
            raise ValueError(f"--text: a file of {shortest} tokens is too short for sequences of {self.length}")

    def batch(self, step: int) -> torch.Tensor:
        """Token ids of step ``step``, int64 [rows, length + 1]; the last column is only a label."""
        sizes = np.array([len(stream) for stream in self.streams], dtype=np.float64) ** MIX_EXPONENT
        edges = np.cumsum(sizes / sizes.sum())
        draws = np.random.default_rng([self.seed, self.length]).random((step + 1) * self.rows)
        files = np.minimum(np.searchsorted(edges, draws), len(self.streams) - 1)
        used = np.bincount(files[: -self.rows], minlength=len(self.streams))
        sequences = []
        for file in files[-self.rows :]:
            sequences.append(self._sequence(int(file), int(used[file])))
            used[file] += 1
        return torch.from_numpy(np.stack(sequences).astype(np.int64))

    def _sequence(self, file: int, use: int) -> np.ndarray:
        """The ``use``-th sequence of a file: a shuffled epoch visits each place once; epochs differ in offset."""
        stream = self.streams[file]
        places = (len(stream) - 1 - self.length) // self.length
        epoch, index = divmod(use, places)
        rng = np.random.default_rng([self.seed, self.length, file, epoch])
        offset = int(rng.integers(self.length))
        start = offset + int(rng.permutation(places)[index]) * self.length
        return stream[start : start + self.length + 1]
