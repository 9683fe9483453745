"""LoRA in plain PyTorch: low-rank adapters on the layers of any network.

Start with :mod:`.layer`: one adapter on one weight. :mod:`.model` puts adapters on a whole network,
switches, merges and removes them; :mod:`.adapter` writes and reads them. The package needs torch,
safetensors and the module ``files`` beside it, nothing else.
"""

from .adapter import load_adapter, read_base_sha256, save_adapter
from .base_state import changed_tensors, fingerprint
from .count import count_parameters, trainable_parameters
from .frozen import freeze_base
from .layer import LoRAParametrization
from .model import (
    add_lora,
    attach,
    has_lora,
    lora_adapters,
    lora_disabled,
    lora_layers,
    lora_names,
    lora_parameters,
    merge_lora,
    remove_lora,
    set_lora_enabled,
)
from .packed import pack_frozen, unpack_frozen
from .peft import CONFIG_NAME
from .settings import LayerSettings
from .state import base_state_dict, lora_state_dict
from .tensor_file import WEIGHTS_NAME
from .variants import loraplus

__all__ = [
    "CONFIG_NAME",
    "WEIGHTS_NAME",
    "LayerSettings",
    "LoRAParametrization",
    "add_lora",
    "attach",
    "base_state_dict",
    "changed_tensors",
    "count_parameters",
    "fingerprint",
    "freeze_base",
    "has_lora",
    "load_adapter",
    "lora_adapters",
    "lora_disabled",
    "lora_layers",
    "lora_names",
    "lora_parameters",
    "lora_state_dict",
    "loraplus",
    "merge_lora",
    "pack_frozen",
    "read_base_sha256",
    "remove_lora",
    "save_adapter",
    "set_lora_enabled",
    "trainable_parameters",
    "unpack_frozen",
]
