"""How one layer is adapted."""

import math
from dataclasses import dataclass

#: No layer has as many inputs or outputs.
_LARGEST_RANK = 2**31 - 1
#: The largest finite float32.
_LARGEST = (2 - 2**-23) * 2.0**127


@dataclass(frozen=True)
class LayerSettings:
    """Rank, scaling, start and dropout of the adapter on one layer.

    Args:
        rank: inner dimension ``r`` of the update, an integer >= 1.
        alpha: numerator of the scaling, finite and > 0.
        init: how the adapter starts; see :data:`.variants.STARTS`.
        init_std: standard deviation of ``lora_A`` with ``gaussian``, finite and > 0.
        use_rslora: ``scaling = alpha / sqrt(rank)`` instead of ``alpha / rank`` (Kalajdzievski
            2023, section 3).
        dropout: probability of zeroing each input of the adapter in training mode, in [0, 1).

    Raises:
        ValueError: if a value is out of range.
    """

    rank: int = 1
    alpha: float = 1.0
    init: str = "gaussian"
    init_std: float = 1.0
    use_rslora: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if type(self.rank) is not int or not 1 <= self.rank <= _LARGEST_RANK:
            raise ValueError(f"rank={self.rank}: expected an integer >= 1, at most {_LARGEST_RANK}")
        for name in ("alpha", "init_std"):
            value = getattr(self, name)
            if not (is_number(value) and value > 0):
                raise ValueError(f"{name}={value}: expected a finite number > 0, at most 3.4e38")
        if not isinstance(self.use_rslora, bool):
            raise ValueError(f"use_rslora={self.use_rslora}: expected true or false")
        if not (is_number(self.dropout) and 0 <= self.dropout < 1):
            raise ValueError(f"dropout={self.dropout}: expected a number from 0 to below 1")

    @property
    def scaling(self) -> float:
        """The factor of the update."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


def is_number(value: object) -> bool:
    """Whether ``value`` is a number that float32 can hold, and no bool."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= _LARGEST
