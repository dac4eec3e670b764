"""The Python SDK: generate text through a running moespac service, synchronously or with asyncio."""

from ...actors.core import Span
from .aio import AsyncClient, AsyncGeneration
from .errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    MoespacError,
    ResourceExhausted,
    Unavailable,
    VersionMismatch,
)
from .results import GenerationStatistics, Model
from .sync import Client, Generation

__all__ = [
    "AsyncClient",
    "AsyncGeneration",
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "Generation",
    "GenerationStatistics",
    "InvalidRequest",
    "Model",
    "MoespacError",
    "ResourceExhausted",
    "Span",
    "Unavailable",
    "VersionMismatch",
]
