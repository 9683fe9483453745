import torch

from lora_mnist.lora import changed_tensors, fingerprint


def test_fingerprint_sees_every_difference() -> None:
    state = {"a": torch.tensor([0.0, 1.0]), "b": torch.ones(2, 3)}
    variants = [
        state,
        {**state, "a": torch.tensor([-0.0, 1.0])},
        {**state, "b": torch.ones(3, 2)},
        {**state, "a": state["a"].double()},
        {"a": state["a"], "c": state["b"]},
        {"a": state["a"]},
    ]
    prints = [fingerprint(variant) for variant in variants]
    assert len(set(prints)) == len(variants)
    assert all(len(p) == 64 for p in prints)
    assert fingerprint({"b": state["b"].clone(), "a": state["a"].clone()}) == prints[0]
    assert [changed_tensors(state, variant) for variant in variants] == [
        *([], ["a"], ["b"], ["a"], ["b", "c"], ["b"])
    ]
