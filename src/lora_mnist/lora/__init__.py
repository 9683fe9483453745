"""LoRA in plain PyTorch: low-rank adapters on the layers of any network.

Start with :mod:`.layer`: one adapter on one weight. :mod:`.model` puts adapters on a whole network,
switches, merges and removes them; :mod:`.adapter` writes and reads them. The package needs torch,
safetensors and ``disk/files.py``, nothing else.
"""

from .adapter import load_adapter, read_base_sha256, save_adapter
from .base_state import (
    base_state_dict,
    changed_tensors,
    count_parameters,
    fingerprint,
    lora_state_dict,
    trainable_parameters,
)
from .frozen import freeze_base
from .layer import LayerSettings, LoRAParametrization, is_number
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
    set_lora_scale,
)
from .peft import CONFIG_NAME, WEIGHTS_NAME, read_factors
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
    "is_number",
    "load_adapter",
    "lora_adapters",
    "lora_disabled",
    "lora_layers",
    "lora_names",
    "lora_parameters",
    "lora_state_dict",
    "loraplus",
    "merge_lora",
    "read_base_sha256",
    "read_factors",
    "remove_lora",
    "save_adapter",
    "set_lora_enabled",
    "set_lora_scale",
    "trainable_parameters",
]
