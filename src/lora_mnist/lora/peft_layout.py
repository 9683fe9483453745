"""The names and shapes under which PEFT keeps the two factors of each kind of layer.

Most layers keep ``lora_A`` and ``lora_B`` as they are here; an embedding keeps them transposed. The
factors of a weight for which PEFT has no adapter are kept in the first way, for use here alone.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from .weight import Weight

_PREFIX = "base_model.model."
_KINDS = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Place(NamedTuple):
    """Where the factors of one weight are kept.

    Attributes:
        lora_A: the key of ``lora_A``.
        lora_B: the key of ``lora_B``.
        transposed: whether both are kept transposed.
    """

    lora_A: str
    lora_B: str
    transposed: bool = False

    def turned(self, factor: Tensor) -> Tensor:
        """A factor as it is kept, from what it is here, or the reverse."""
        return factor.t() if self.transposed else factor


def place_of(name: str, weight: Weight) -> Place:
    """Where the factors of ``weight``, called ``name``, are kept."""
    key = f"{_PREFIX}{name}"
    if isinstance(weight.module, nn.Embedding) and weight.tensor == "weight":
        # PEFT's A is what is looked up.
        return Place(f"{key}.lora_embedding_B", f"{key}.lora_embedding_A", transposed=True)
    return Place(f"{key}.lora_A.weight", f"{key}.lora_B.weight")


def places_in(keys: Collection[str], weights: Mapping[str, Weight]) -> dict[str, Place]:
    """Each weight that has a factor among ``keys``, and where both should be."""
    places = {name: place_of(name, weight) for name, weight in weights.items()}
    return {name: p for name, p in places.items() if p.lora_A in keys or p.lora_B in keys}


def is_known_to_peft(weight: Weight) -> bool:
    """Whether PEFT has an adapter of this form for ``weight``, and uses it.

    It has another form for grouped convolutions. For attention it has one adapter for the stacked
    weight and the output's together, and up to 0.21 adds the output's update twice (PEFT's pull
    request 3774).
    """
    is_read_alone = isinstance(weight.module, NonDynamicallyQuantizableLinear)
    is_grouped = getattr(weight.module, "groups", 1) > 1
    is_layer = weight.tensor == "weight" and isinstance(weight.module, _KINDS)
    return is_layer and not is_read_alone and not is_grouped
