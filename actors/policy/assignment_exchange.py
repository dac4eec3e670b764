"""Exchanges between a layer's slowest device and another: what single moves cannot do where budgets are used up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .assignment_prices import Prices

if TYPE_CHECKING:
    from .assignment_search import Search

HEAVY, LIGHT = 16, 8
"""Experts looked at for an exchange, on a layer's slowest device and on each of the others."""


def exchange(search: Search, prices: Prices) -> bool:
    """The best exchange of every layer between its slowest device and another; whether there was any.

    Of the slowest device the `HEAVY` experts it would gain most by losing are looked at, of every other device the
    `LIGHT` that it would lose least by taking.
    """
    p, times = search.pricing, search.times()
    slowest = times.argmax(axis=0)
    rows = np.arange(len(slowest))
    heavy = _extreme(np.where(search.device == slowest[:, None], p.work[slowest, rows], -np.inf), HEAVY)
    best, pair, target = np.full(len(rows), 1e-9), np.zeros((2, len(rows)), dtype=np.int64), slowest.copy()
    for d in range(len(p.slots)):
        on_other = np.where(search.device == d, -p.work[slowest, rows], -np.inf)
        light = _extreme(on_other, LIGHT)
        gain = _gains(search, prices, times, slowest, d, heavy, light)
        at = gain.reshape(len(rows), -1).argmax(axis=1)
        gains = gain.reshape(len(rows), -1)[rows, at]
        better = (gains > best) & (slowest != d)
        best[better], target[better] = gains[better], d
        out, back = np.divmod(at, light.shape[1])
        pair[0, better], pair[1, better] = heavy[rows, out][better], light[rows, back][better]
    layers = np.flatnonzero(target != slowest)
    layers = layers[np.argsort(-best[layers], kind="stable")]
    _, links = search.room()
    done = False
    for layer in layers.tolist():
        (out, back), c, d = pair[:, layer], slowest[layer], target[layer]
        need_c = int(p.absent[c, layer, back]) - int(p.absent[c, layer, out])
        need_d = int(p.absent[d, layer, out]) - int(p.absent[d, layer, back])
        if links[c] < need_c or links[d] < need_d:
            continue
        links[c] -= need_c
        links[d] -= need_d
        search.put(np.array([layer, layer]), pair[:, layer], np.array([d, c]))
        done = True
    return done


def _gains(
    search: Search, prices: Prices, times: np.ndarray, slowest: np.ndarray, d: int, heavy: np.ndarray, light: np.ndarray
) -> np.ndarray:
    """What each layer gains if `heavy` goes to `d` and `light` comes back; [layers, heavy, light]."""
    p, rows = search.pricing, np.arange(len(slowest))
    at, heavies, lights = rows[:, None], heavy, light
    c = slowest[:, None]

    def change(
        device: np.ndarray, layers_moves: np.ndarray, comes: np.ndarray, goes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        work = p.work[device, at, comes][..., None, :] - p.work[device, at, goes][..., :, None]
        moved = p.absent32[device, at, comes][..., None, :] - p.absent32[device, at, goes][..., :, None]
        transfer, window = p.transfer[device][..., None], p.window[device][..., None]
        before = np.maximum(layers_moves[:, None, None] * transfer - window, 0.0)
        after = np.maximum((layers_moves[:, None, None] + moved) * transfer - window, 0.0)
        return work + after - before, moved

    ours, our_moves = change(c, search.moves[slowest, rows], lights, heavies)
    theirs, their_moves = change(np.full_like(c, d), search.moves[d], heavies, lights)
    theirs, their_moves = theirs.transpose(0, 2, 1), their_moves.transpose(0, 2, 1)
    rest = times.copy()
    rest[slowest, rows] = -np.inf
    rest[d] = -np.inf
    longest = times[slowest, rows][:, None, None]
    after = np.maximum(times[slowest, rows][:, None, None] + ours, times[d][:, None, None] + theirs)
    after = np.maximum(after, rest.max(axis=0)[:, None, None])
    gain = longest - after - prices.link[slowest][:, None, None] * our_moves - prices.link[d] * their_moves
    here = (search.device[at, heavies] == c)[:, :, None] & (search.device[at, lights] == d)[:, None, :]
    return np.where(here, gain, -np.inf)


def _extreme(value: np.ndarray, count: int) -> np.ndarray:
    """Experts of the largest values of each layer, int [layers, count or fewer]."""
    count = min(count, value.shape[1])
    return np.argpartition(-value, count - 1, axis=1)[:, :count]
