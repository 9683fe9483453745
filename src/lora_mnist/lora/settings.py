"""How the adapter on one layer is made."""

import math
from dataclasses import dataclass

INITS = ("gaussian", "kaiming", "pissa")


@dataclass(frozen=True)
class LayerSettings:
    """Rank, scaling, initialisation and dropout of the adapter on one layer.

    They mean what they mean to :func:`.model.add_lora`. ValueError if a value is out of range.
    """

    rank: int = 1
    alpha: float = 1.0
    init: str = "gaussian"
    init_std: float | None = None
    use_rslora: bool = False
    dropout: float = 0.0
    use_dora: bool = False

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise ValueError(f"rank={self.rank}: expected an integer >= 1")
        if not is_number(self.alpha) or self.alpha <= 0:
            raise ValueError(f"alpha={self.alpha}: expected a finite number > 0")
        if self.init not in INITS:
            raise ValueError(f"init={self.init}: expected one of {', '.join(INITS)}")
        if self.init_std is not None and self.init != "gaussian":
            raise ValueError(
                f"init_std={self.init_std}: expected null, since init={self.init} has no deviation"
            )
        if self.init_std is not None and not (is_number(self.init_std) and self.init_std > 0):
            raise ValueError(f"init_std={self.init_std}: expected a finite number > 0")
        for name, value in (("use_rslora", self.use_rslora), ("use_dora", self.use_dora)):
            if not isinstance(value, bool):
                raise ValueError(f"{name}={value}: expected true or false")
        if self.use_dora and self.init == "pissa":
            raise ValueError("use_dora=True: expected init=gaussian or init=kaiming")
        if not is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: expected a number from 0 to below 1")

    @property
    def scaling(self) -> float:
        """The factor of the update; with the root, of Kalajdzievski 2023, arXiv:2312.03732."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


def is_number(value: object) -> bool:
    """Whether ``value`` is a finite number, and no bool."""
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and math.isfinite(value)  # type: ignore[arg-type]
