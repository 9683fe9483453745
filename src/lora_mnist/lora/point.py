"""An operating point: the scale and the offset of an adapter as one value. Plain Python."""

from typing import NamedTuple


class Point(NamedTuple):
    """The scale and the offset of an adapter. At its neutral value each changes nothing."""

    scale: float = 0.0
    offset: float = 0.0


#: There the network is its base, bit for bit.
BASE = Point()
#: The point of an adapter that was just made or trained.
TRAINED = Point(scale=1.0)
