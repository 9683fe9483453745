"""What a configuration names: an adapter, its classifier, the recipe of a training."""

import os

from composed import SMALL, composed, small_adapter

from lora_mnist import MLP
from lora_mnist.configuration import classifier_of
from lora_mnist.lora.weight import lora_weights
from lora_mnist.recipe import put_new_adapter


def finished(outputs, run, seconds):
    """An adapter that was finished so many seconds after some time."""
    file = small_adapter(outputs, run, seed=seconds) / "adapter_config.json"
    os.utime(file, (10**9 + seconds, 10**9 + seconds))


def test_the_latest_is_the_newest_by_time(outputs):
    """Whatever the folders are called."""

    def latest():
        cfg = composed("eval", *SMALL, f"paths.outputs={outputs}", "adapter=latest")
        return classifier_of(cfg).adapter.parent.name

    finished(outputs, "lora/2026-b", 0)
    finished(outputs, "lora/2026-a", 1)
    assert latest() == "2026-a"
    finished(outputs, "lora/nines", 5)
    assert latest() == "nines"
    finished(outputs, "lora/2026-b", 7)
    assert latest() == "2026-b"


def test_rank_auto_is_a_layers_full_rank_where_that_is_smaller():
    cfg = composed("train", "stage=lora", "lora.rank=auto", "lora.rank_pattern={linear3: 2}")
    net = MLP(hidden_sizes=[100, 20])
    put_new_adapter(cfg, net)
    ranks = {name: len(weight.adapters[0].lora_A) for name, weight in lora_weights(net).items()}
    assert ranks == {"linear1": 64, "linear2": 20, "linear3": 2}
