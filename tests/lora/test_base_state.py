"""The SHA-256 of a base."""

import torch

from lora_mnist.lora.base_state import changed_tensors, hash_tensors


def test_fingerprint_sees_every_difference():
    state = {"a": torch.tensor([0.0, 1.0]), "b": torch.ones(2, 3)}
    variants = [
        (state, []),
        ({**state, "a": torch.tensor([-0.0, 1.0])}, ["a"]),
        ({**state, "b": torch.ones(3, 2)}, ["b"]),
        ({"a": state["a"], "c": state["b"]}, ["b", "c"]),
    ]
    assert len({hash_tensors(variant) for variant, _ in variants}) == len(variants)
    for variant, changed in variants:
        assert changed_tensors(state, variant) == changed
    reversed_copy = {"b": state["b"].clone(), "a": state["a"].clone()}
    assert hash_tensors(reversed_copy) == hash_tensors(state)
    # The name of a base on disk, in adapters and in results: the same for ever.
    assert hash_tensors({"a": torch.arange(3)})[:12] == "28eb18b5aab3"
