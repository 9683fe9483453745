"""What a configuration names: an adapter, its classifier, the recipe of a training."""

import os
from types import SimpleNamespace

import pytest
from composed import SMALL, composed, small_adapter

from lora_mnist import MLP
from lora_mnist.command import Run, checked_copy, classifier_of
from lora_mnist.errors import UserError
from lora_mnist.lora.weight import lora_weights
from lora_mnist.recipe import put_adapter


def finished(outputs, run, seconds):
    """An adapter that was finished so many seconds after some time."""
    file = small_adapter(outputs, run, seed=seconds) / "adapter_config.json"
    os.utime(file, (10**9 + seconds, 10**9 + seconds))


def test_the_latest_is_the_newest_by_time(outputs):
    """Whatever the folders are called; the jobs of a sweep could find different ones."""
    cfg = composed("eval", *SMALL, f"paths.outputs={outputs}", "adapter=latest")
    for seconds, run in enumerate(("lora/2026-b", "lora/2026-a", "lora/nines", "lora/2026-b")):
        finished(outputs, run, seconds)
        newest = classifier_of(cfg).adapter.parent
        assert newest == outputs / run
    with pytest.raises(UserError, match="^adapter=latest: expected the folder itself in a sweep"):
        classifier_of(cfg, Run(outputs, is_sweep=True))


def test_rank_auto_is_a_layers_full_rank_where_that_is_smaller():
    cfg = composed("train", "stage=lora", "lora.rank=auto", "lora.rank_pattern={linear3: 2}")
    net = MLP(hidden_sizes=[100, 20])
    put_adapter(SimpleNamespace(cfg=cfg, net=net))
    ranks = {name: len(weight.adapters[0].lora_A) for name, weight in lora_weights(net).items()}
    assert ranks == {"linear1": 64, "linear2": 20, "linear3": 2}


def test_each_command_takes_the_keys_that_it_has(tmp_path):
    """Of ``configs/local/default.yaml``, where nobody has typed them."""
    cfg = composed("predict", "+seed=3", "images=x.png")
    assert "seed" not in checked_copy(cfg, Run(tmp_path, typed=("images=x.png",)))
    with pytest.raises(UserError, match="^seed: nothing reads this key with stage=predict"):
        checked_copy(cfg, Run(tmp_path, typed=("+seed=3",)))
