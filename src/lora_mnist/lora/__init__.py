"""LoRA in plain PyTorch: low-rank adapters on the layers of any network.

Start with :mod:`.layer`: one adapter on one weight. :mod:`.model` has the life of an adapter in a
network, from ``add_lora`` to ``merge_lora`` and ``remove_lora``; :mod:`.adapter` writes and reads
its files. The package needs torch, safetensors and ``files.py``, nothing else.
"""
