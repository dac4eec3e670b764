"""Generates the stubs in `v1/` from the .proto files beside them: `python -m moespac.protos.generate`.

Needs grpcio-tools (the `dev` extra). A test proves that the committed stubs are what this makes.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent


def generate(out: Path = ROOT / "v1") -> list[Path]:
    """Writes `*_pb2.py`, `*_pb2.pyi` and `*_pb2_grpc.py` into `out`; returns the files written."""
    protos = sorted((ROOT / "v1").glob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        # The virtual path makes the stubs import each other as moespac.protos.v1, where they are installed.
        command = [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-Imoespac/protos={ROOT}",
            f"--python_out={scratch}",
            f"--pyi_out={scratch}",
            f"--grpc_python_out={scratch}",
            *(f"moespac/protos/v1/{p.name}" for p in protos),
        ]
        # A process of its own: protoc's libraries abort where others have loaded theirs already.
        subprocess.run(command, check=True)
        made = []
        for source in sorted(Path(scratch, "moespac/protos/v1").iterdir()):
            target = out / source.name
            target.write_bytes(source.read_bytes())
            made.append(target)
    return made


if __name__ == "__main__":
    for path in generate():
        print(path, file=sys.stderr)
