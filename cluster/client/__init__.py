"""The Python SDK: generate text through a running moespac service, synchronously or with asyncio."""

from ...actors.core import Span, TokenLogprobs
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
from .options import Options
from .results import DraftStatistics, GenerationStatistics, Model
from .sync import Client, Generation

__all__ = [
    "AsyncClient",
    "AsyncGeneration",
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "DraftStatistics",
    "Generation",
    "GenerationStatistics",
    "InvalidRequest",
    "Model",
    "MoespacError",
    "Options",
    "ResourceExhausted",
    "Span",
    "TokenLogprobs",
    "Unavailable",
    "VersionMismatch",
]
