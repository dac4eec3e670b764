"""moespac serves Mixture-of-Experts language models that do not fit in the accelerator.

The client SDK is what most programs need::

    from moespac import Client

    for piece in Client("localhost:50051").generate("Once upon a time", max_tokens=64):
        print(piece, end="")
"""

from .version import __version__

__all__ = ["AsyncClient", "Client", "__version__"]


def __getattr__(name: str):
    # Importing the package must stay cheap: actors and tools that never speak to a gateway do not load gRPC for it.
    if name in ("Client", "AsyncClient"):
        from .cluster import client

        return getattr(client, name)
    raise AttributeError(f"module 'moespac' has no attribute {name!r}")
