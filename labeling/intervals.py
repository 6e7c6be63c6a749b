"""Intervals of what was counted. Pure functions."""

import math
from statistics import NormalDist

Z_95 = NormalDist().inv_cdf(0.975)


def wilson(share: float, number: int) -> tuple[float, float]:
    """The 95 % Wilson interval (1927) of a share in [0, 1] seen in `number` > 0 cases."""
    spread = Z_95**2 / number
    middle = share + spread / 2
    reach = math.sqrt(spread * share * (1 - share) + spread**2 / 4)
    return max(0.0, (middle - reach) / (1 + spread)), min(1.0, (middle + reach) / (1 + spread))
