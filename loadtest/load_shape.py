"""The number of users over time: a ramp up, a steady phase, a spike, and a ramp down to zero.

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
    """A load shape. A phase of 0 s is skipped.

    After the spike, the extra users stop immediately and the remaining users stop one by one.

    Raises:
        ValueError: A number of users is below 1, or a time is negative or infinite.
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
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        for name in ("ramp_s", "steady_s", "spike_s", "down_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 0 or more, and finite")

    def users_at(self, since_s: float) -> int | None:
        """Return the number of users `since_s` seconds after the start, or None when the load is over."""
        spike_from_s = self.ramp_s + self.steady_s
        down_from_s = spike_from_s + self.spike_s
        if since_s < self.ramp_s:
            return max(1, math.ceil(self.users * since_s / self.ramp_s))
        if since_s < spike_from_s:
            return self.users
        if since_s < down_from_s:
            return self.spike_users
        if since_s < down_from_s + self.down_s:
            return max(1, math.ceil(self.users * (1 - (since_s - down_from_s) / self.down_s)))
        return None
