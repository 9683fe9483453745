"""An operating point: all that a finished adapter is turned by, as one value. Plain Python."""

from typing import NamedTuple


class Point(NamedTuple):
    """The scale and the offset of an adapter. At its neutral value each changes nothing."""

    scale: float = 0.0
    offset: float = 0.0


#: There the network is its base, bit for bit.
BASE = Point()
#: There a new adapter is, and one that was trained and not turned since.
TRAINED = Point(scale=1.0)
