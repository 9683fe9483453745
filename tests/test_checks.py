"""Refusals and warnings around a training."""

from types import SimpleNamespace

import pytest

from lora_mnist.checks import majority_baseline_failure


@pytest.mark.parametrize("adapter", [None, "second"])
def test_a_repair_is_useless_if_what_it_started_from_was_not(adapter):
    """A network that always says the same class; on top of an adapter, that is the start."""
    images = {"images_per_class": [60, 40]}
    start = "base" if adapter is None else "before"
    data = SimpleNamespace(classes=["cat", "dog"])

    def failure(before, after):
        outcomes = {
            "val": {"accuracy": after, **images},
            f"val_{start}": {"accuracy": before, **images},
        }
        module = SimpleNamespace(outcomes=outcomes, compared_with=start, lr=0.1)
        return majority_baseline_failure(SimpleNamespace(fast_dev_run=0), module, data)

    assert failure(0.9, 0.8) is None
    assert "always saying cat" in failure(0.9, 0.6)
    assert failure(0.6, 0.6) is None
