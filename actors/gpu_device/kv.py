"""The KV cache of requests: what one takes, who holds how much, and rolling it back exactly."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import torch
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin

from .growing_cache import grow_in_place
from .hook import experts_computed_by
from .trunk import LoadedModel


class KvExhausted(RuntimeError):
    """The KV budget does not hold the request beside those that run."""


class CacheUnsupported(ValueError):
    """The architecture keeps state that cannot be rolled back token by token."""


class RequestCache:
    """One request's cache in one model: the state after its first `length` tokens."""

    def __init__(self, model: LoadedModel, positions: int | None = None):
        """`positions`: what it may grow to, taken at once; None: it grows by copying."""
        self.cache = DynamicCache(config=model.model.config)
        self.positions = positions
        if positions is not None:
            grow_in_place(self.cache, positions)
        # Sliding windows forget what a rollback needs unless told to keep it until the next one.
        self.cache.activate_past_recording()
        self.length = 0

    def grown(self, tokens: int) -> None:
        """To be told after a pass over `tokens` further tokens."""
        self.length += tokens

    def rollback(self, length: int) -> None:
        """Forgets every token from position `length` on, also those of a pass that broke off between two layers."""
        if length > self.length:
            raise ValueError(f"cannot roll back to {length} tokens, {self.length} are cached")
        for layer in self.cache.layers:
            # One that no pass has reached yet has nothing to crop, and a sliding window fails to.
            if layer.is_initialized:
                layer.crop(-max(0, layer.get_seq_length() - length))
        self.length = length

    def nbytes(self) -> int:
        """Bytes its tensors occupy; views of a rolled back pass count whole."""
        return sum(tensor.untyped_storage().nbytes() for tensor in _tensors(self.cache))


class KvBudget:
    """Reservations of KV memory by request; thread-safe. Never more than `budget_bytes` in all."""

    def __init__(self, budget_bytes: int, bytes_per_token: int):
        self.budget_bytes, self.bytes_per_token = budget_bytes, bytes_per_token
        self._lock = threading.Lock()
        self._reserved: dict[str, int] = {}

    @property
    def reserved_bytes(self) -> int:
        with self._lock:
            return sum(self._reserved.values())

    def reserve(self, request_id: str, tokens: int) -> None:
        """Sets `tokens` positions aside. Raises KvExhausted, and then nothing has changed."""
        need = tokens * self.bytes_per_token
        with self._lock:
            if request_id in self._reserved:
                raise ValueError(f"request {request_id} has a reservation already")
            free = self.budget_bytes - sum(self._reserved.values())
            if need > free:
                hint = (
                    "wait for running requests to end"
                    if need <= self.budget_bytes
                    else f"ask for fewer tokens (at most {self.budget_bytes // self.bytes_per_token} fit, "
                    "prompt and draft window included) or raise kv_memory"
                )
                raise KvExhausted(
                    f"KV cache for {tokens} tokens takes {need:,} bytes, {free:,} of kv_memory "
                    f"({self.budget_bytes:,} bytes) are free: {hint}"
                )
            self._reserved[request_id] = need

    def release(self, request_id: str) -> None:
        """Gives a reservation back; one that is not held is no error."""
        with self._lock:
            self._reserved.pop(request_id, None)

    def check_integrity(self, held: dict[str, int]) -> None:
        """`held`: bytes in use of each request. Raises RuntimeError where the books and the memory disagree."""
        with self._lock:
            reserved = dict(self._reserved)
        if sum(reserved.values()) > self.budget_bytes:
            raise RuntimeError(f"{sum(reserved.values())} bytes reserved of {self.budget_bytes}")
        if held.keys() != reserved.keys():
            raise RuntimeError(f"requests {sorted(held)} run, {sorted(reserved)} have reservations")
        for request_id, used in held.items():
            if used > reserved[request_id]:
                raise RuntimeError(f"request {request_id} uses {used} bytes of {reserved[request_id]} reserved")


def bytes_per_token(model: LoadedModel) -> int:
    """Bytes that one more token adds to a cache: measured, because architectures cache different things.

    The pass computes no routed experts: what is cached does not depend on them. Raises CacheUnsupported.
    """
    cache = RequestCache(model)
    tokens = torch.zeros((1, 1), dtype=torch.long, device=model.device)
    with torch.inference_mode(), experts_computed_by(lambda _layer, hidden, _index, _weights: torch.zeros_like(hidden)):
        model.model(tokens, past_key_values=cache.cache, use_cache=True)
    for layer in cache.cache.layers:
        if not isinstance(layer, CacheLayerMixin) or not layer.is_croppable or layer.get_seq_length() != 1:
            raise CacheUnsupported(
                f"{type(model.model).__name__} keeps {type(layer).__name__} state, which cannot be rolled back "
                "after rejected draft tokens; choose a model with full or sliding attention in every layer"
            )
    return sum(tensor.nbytes for tensor in _tensors(cache.cache))


def _tensors(cache: DynamicCache) -> Iterator[torch.Tensor]:
    for layer in cache.layers:
        if layer.is_initialized:
            yield layer.keys
            yield layer.values
