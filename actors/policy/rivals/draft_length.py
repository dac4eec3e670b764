"""How many tokens to draft: the γ of most expected tokens per second, no drafts included."""

from __future__ import annotations

import numpy as np

LONGEST = 8
FORGET = 0.98
"""Weight of all earlier windows when a new one is counted: half is lost after 34."""
FIRST = (1, 0, 3, 1, 0, 2)
"""Before there is a line to go by."""
PROBE_EVERY = 64
"""Steps between drafts of a token where none pay, so that a better acceptance is noticed."""


class DraftLength:
    """Learns the acceptance rate and the time of a verification as a line in its tokens.

    E[tokens] = (1 − α^(γ+1)) / (1 − α). Time: γ drafts, and a + b·(γ+1)^0.6 fitted to what verifications took, each
    weighted by its age; distinct experts grow about so with the tokens of a window.
    """

    GROWTH = 0.6

    def __init__(self, draft_token_s: float) -> None:
        self._draft_s = draft_token_s
        self._accepted, self._tried = 0.7, 1.0
        self._moments = np.zeros(5)
        """Weighted sums of 1, x, x², y, xy with x = tokens^0.6 and y seconds."""
        self._steps = 0

    def observe(self, tokens: int, accepted: int, seconds: float) -> None:
        """A window of `tokens` tokens of which `accepted` drafts stood; the step took `seconds`, drafting included."""
        tried = min(accepted + 1, tokens - 1)
        if tried:
            self._accepted = FORGET * self._accepted + accepted
            self._tried = FORGET * self._tried + tried
        x, y = tokens**self.GROWTH, seconds - (tokens - 1) * self._draft_s
        self._moments = FORGET * self._moments + (1.0, x, x * x, y, x * y)
        self._steps += 1

    def choose(self) -> int:
        """γ of the next step."""
        if self._steps < len(FIRST):
            return FIRST[self._steps]
        rate = min(self._accepted / self._tried, 0.999)
        gammas = np.arange(LONGEST + 1)
        n, sx, sxx, sy, sxy = self._moments
        spread = n * sxx - sx * sx
        slope = (n * sxy - sx * sy) / spread if spread > 1e-6 * n * n else sy / sx
        slope = min(max(slope, 0.0), sy / sx)
        verify = (sy - slope * sx) / n + slope * (gammas + 1) ** self.GROWTH
        speed = (1 - rate ** (gammas + 1)) / (1 - rate) / (gammas * self._draft_s + verify)
        best = int(np.argmax(speed))
        if self._steps % PROBE_EVERY == 0:
            return best + 1 if best < LONGEST else best - 1
        return best
