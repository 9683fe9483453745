"""What a configuration names: an adapter, its classifier, the recipe of a training."""

import os

import pytest
from composed import SMALL, composed, small_adapter
from helpers.commands import refused

from lora_mnist import MLP
from lora_mnist.configuration import checked_copy, classifier_of, refuse_what_is_not_there
from lora_mnist.errors import UserError
from lora_mnist.lora.weight import lora_weights
from lora_mnist.recipe import put_new_adapter
from lora_mnist.run import Run

FOLDER = ("data=folder", "data.data_dir=sounds", "base_ckpt=nowhere.pt")


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


def test_each_command_takes_the_keys_that_it_has(tmp_path):
    """Of ``configs/local/default.yaml``, where nobody has typed them."""
    cfg = composed("predict", "+seed=3", "images=x.png")
    assert "seed" not in checked_copy(cfg, Run(tmp_path, typed=("images=x.png",)))
    with pytest.raises(UserError, match="^seed: nothing reads this key with stage=predict"):
        checked_copy(cfg, Run(tmp_path, typed=("+seed=3",)))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("stage=lora", "digit=fives"), "target=fives: no class is called fives; the nearest is 5"),
        (("stage=pretrain", "target=[1,seven]"), "target=[1, 'seven']: no class is called seven; "),
        (
            ("stage=lora", "target=vibratto"),
            "target=vibratto: no class is called vibratto; the nea",
        ),
        (
            ("stage=lora", "target=[voice,x]"),
            "target=['voice', 'x']: no class is called x; expecte",
        ),
        (
            ("stage=lora", "data.data_dir=sonds"),
            "data.data_dir=sonds: expected a folder of images;",
        ),
        (("stage=lora", "target=[voice,1]"), None),
        (("stage=lora", "target=weakest"), None),
        (("stage=lora", "target=vibratto", "data.classes=[vibratto,voice]"), None),
    ],
)
def test_a_class_or_a_folder_that_is_not_there_is_told_at_once(
    tmp_path, monkeypatch, overrides, said
):
    """Before a missing base: nothing is read, and torch is not imported."""
    monkeypatch.chdir(tmp_path)
    for name in ("train/vibrato", "train/voice", "test/voice"):
        (tmp_path / "sounds" / name).mkdir(parents=True)
    if "five" not in overrides[1] and "seven" not in overrides[1]:
        overrides = (*FOLDER, *overrides)
    cfg = composed("train", *overrides, f"paths.outputs={tmp_path}")
    if said is None:
        refuse_what_is_not_there(cfg)
    else:
        assert refused(refuse_what_is_not_there, cfg).startswith(said)
