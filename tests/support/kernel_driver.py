"""Expert calls handed to kernels in a process that is no Python: made for another CPU, or by another compiler."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from moespac.kernels.cpu import library
from moespac.kernels.cpu.build import HERE
from moespac.kernels.cpu.experts import _layer
from moespac.kernels.experts import ExpertWork
from moespac.kernels.layout import ExpertLayout

SOURCE = Path(__file__).with_suffix(".cpp")


@dataclass(frozen=True)
class Call:
    """One call of the kernels on `threads` threads; `hidden` is in the compute type."""

    isa: str
    layout: ExpertLayout
    hidden: torch.Tensor
    work: Sequence[ExpertWork]
    threads: int = 1

    def written(self) -> bytes:
        """As kernel_driver.cpp reads it."""
        size = self.layout.expert_bytes
        hidden = _bytes(self.hidden)
        head = (library.ISAS.index(self.isa), library.COMPUTE[self.hidden.dtype], self.threads, len(self.work))
        pieces = [struct.pack("<7q", *head, len(hidden), size, len(self.hidden)), bytes(_layer(self.layout)), hidden]
        for item in self.work:
            pieces += [struct.pack("<q", len(item.token_rows)), _bytes(item.token_rows)]
            pieces += [_bytes(item.router_weights.float()), _bytes(item.block[:size])]
        return b"".join(pieces)


def compile_driver(cxx: Sequence[str], with_: Sequence[Path | str], target: Path) -> Path:
    """Links the driver with objects or a library of the kernels."""
    command = [*cxx, "-std=c++17", f"-I{HERE}", str(SOURCE), *map(str, with_), "-pthread", "-o", str(target)]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return target


def run(command: Sequence[Path | str], calls: Sequence[Call], folder: Path) -> tuple[set[str], list[torch.Tensor]]:
    """Instruction sets that the driver has, and the rows [pairs, H] of each call. `command`: starts the driver."""
    (folder / "calls").write_bytes(b"".join(call.written() for call in calls))
    ran = subprocess.run([*map(str, command), folder / "calls", folder / "rows"], capture_output=True, text=True)
    assert ran.returncode == 0, (ran.returncode, ran.stderr)
    rows = torch.from_numpy(np.fromfile(folder / "rows", dtype=np.float32)).view(-1)
    sizes = [sum(len(item.token_rows) for item in call.work) * call.layout.hidden_size for call in calls]
    isas = {name for number, name in enumerate(library.ISAS) if int(ran.stdout) >> number & 1}
    pieces = zip(rows.split(sizes), calls, strict=True)
    return isas, [piece.view(-1, call.layout.hidden_size) for piece, call in pieces]


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
