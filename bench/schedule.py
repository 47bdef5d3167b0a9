"""When messages are due.  An open loop: they are due then, whether or not anybody keeps up.

Latency counts from the moment at which a message was due, not from the one at which it was sent: a sender that is held
up by what it measures would leave out just the bad samples (G. Tene calls that coordinated omission).
"""

from __future__ import annotations

import random
from array import array
from typing import Final, Literal

NANOSECONDS: Final = 1_000_000_000

Arrivals = Literal["fixed", "poisson"]


def due_times(rate: float, seconds: float, arrivals: Arrivals, seed: int) -> array[int]:
    """Nanoseconds from the beginning, ascending; the seed gives the same ones again.

    Args:
      rate: Messages a second.
      arrivals: ``fixed`` is one every ``1 / rate``; ``poisson`` is as likely at any moment as at any other, as it is
        where many independent senders send.
    """
    count = max(1, round(rate * seconds))
    if arrivals == "fixed":
        return array("q", (round(number * NANOSECONDS / rate) for number in range(count)))
    chance = random.Random(seed)
    due, times = 0.0, array("q")
    for _ in range(count):
        times.append(round(due * NANOSECONDS))
        due += chance.expovariate(rate)
    return times
