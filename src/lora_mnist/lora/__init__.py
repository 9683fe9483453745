"""LoRA in plain PyTorch: low-rank adapters on the layers of any network.

Start with :mod:`.layer`: one adapter on one weight. The life of an adapter, in order: ``add_lora``,
training, ``lora_disabled``, ``set_lora_enabled`` and ``set_lora_scale`` (:mod:`.model`);
``save_adapter`` and ``load_adapter`` (:mod:`.adapter`), ``combine_adapters`` and ``sum_adapters``
(:mod:`.combine`); ``merge_lora``, ``unmerge_lora`` and ``remove_lora`` (:mod:`.merge`).
The package needs torch, safetensors and ``disk/files.py``, nothing else.
"""

from .adapter import load_adapter as load_adapter
from .adapter import save_adapter as save_adapter
from .base_state import base_state_dict as base_state_dict
from .base_state import changed_tensors as changed_tensors
from .base_state import count_parameters as count_parameters
from .base_state import fingerprint as fingerprint
from .base_state import lora_state_dict as lora_state_dict
from .combine import combine_adapters as combine_adapters
from .combine import sum_adapters as sum_adapters
from .layer import LoRAParametrization as LoRAParametrization
from .merge import merge_lora as merge_lora
from .merge import remove_lora as remove_lora
from .merge import unmerge_lora as unmerge_lora
from .model import add_lora as add_lora
from .model import lora_disabled as lora_disabled
from .model import lora_names as lora_names
from .model import lora_parameters as lora_parameters
from .model import named_adapters as named_adapters
from .model import set_lora_enabled as set_lora_enabled
from .model import set_lora_scale as set_lora_scale
from .peft import CONFIG_NAME as CONFIG_NAME
from .peft import WEIGHTS_NAME as WEIGHTS_NAME
from .peft import read_metadata as read_metadata
from .targets import target_weights as target_weights
from .weight import adaptable_weights as adaptable_weights
from .weight import lora_adapters as lora_adapters
from .weight import lora_weights as lora_weights
