"""LoRA in plain PyTorch: low-rank adapters on the layers of any network.

Start with :mod:`.layer`: one adapter on one weight. The life of an adapter, in order: ``add_lora``,
training, ``lora_disabled``, ``set_lora_enabled`` and ``set_lora_scale`` (:mod:`.model`);
``save_adapter`` and ``load_adapter`` (:mod:`.adapter`); ``merge_lora``, ``unmerge_lora`` and
``remove_lora`` (:mod:`.merge`).
``lora_mnist`` has all of these names. The package needs torch, safetensors and ``disk/files.py``,
nothing else.
"""
