"""How many users there are, and when: a ramp, a steady stretch, a spike, and down to none.

    users
      |              ____
      |             |    |   spike_users
      |    _________|    |
      |   /              |\\
      |  /               | \\
      | /                |  \\
      +-------------------------- s
       ramp steady   spike down
"""

import math
from dataclasses import dataclass

RAMP_STEADY_SPIKE = "ramp-steady-spike"


@dataclass(frozen=True)
class Shape:
    """A part of 0 s is left out. After the spike its users leave at once, and the others one after another.

    Raises:
        ValueError: for users below 1, or a time below 0.
    """

    users: int
    spike_users: int
    ramp_s: float = 30.0
    steady_s: float = 60.0
    spike_s: float = 10.0
    down_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("users", "spike_users"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}, not 1 or more")
        for name in ("ramp_s", "steady_s", "spike_s", "down_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: {getattr(self, name)}, not 0 or more")

    def users_at(self, since_s: float) -> int | None:
        """since_s: from the start. None: it is over."""
        spike_from_s = self.ramp_s + self.steady_s
        down_from_s = spike_from_s + self.spike_s
        if since_s < self.ramp_s:
            return _part(self.users, since_s / self.ramp_s)
        if since_s < spike_from_s:
            return self.users
        if since_s < down_from_s:
            return self.spike_users
        if since_s < down_from_s + self.down_s:
            return _part(self.users, 1 - (since_s - down_from_s) / self.down_s)
        return None


def _part(users: int, share: float) -> int:
    return max(1, math.ceil(users * share))
