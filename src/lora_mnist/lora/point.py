"""An operating point: all that a finished adapter is turned by, as one value. Plain Python."""

from typing import NamedTuple


class Point(NamedTuple):
    """Where an adapter stands: ``scale`` is 1 as trained, ``offset`` is 0 where it adds nothing."""

    scale: float
    offset: float = 0.0


#: There the network is its base, bit for bit.
BASE = Point(0.0, 0.0)
