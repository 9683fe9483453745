import re

import pytest
import torch
from helpers.nets import batches
from helpers.trainings import Recorded, trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lora_mnist import add_lora, lora_parameters
from lora_mnist.classifier.weights_file import load_weights, read_base
from lora_mnist.training.callbacks import LogDuration, TrainedAverage


@pytest.mark.parametrize(("init", "more"), [("gaussian", set()), ("pissa", {"start_A", "start_B"})])
def test_training_ends_with_the_moving_average_of_the_adapter(tiny, tmp_path, init, more):
    module = Recorded(add_lora(tiny, init=init))
    fit = trainer(tmp_path, max_steps=3, callbacks=TrainedAverage(0.75))
    fit.fit(module, batches())
    steps_of = zip(*module.adapters, strict=True)
    for parameter, steps in zip(lora_parameters(tiny), steps_of, strict=True):
        first, second, third = steps
        expected = 0.75 * (0.75 * first + 0.25 * second) + 0.25 * third
        torch.testing.assert_close(parameter, expected)
    fit.save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    names = {name.rsplit(".", 1)[1] for name in state}
    assert names == {"lora_A", "lora_B"} | more


def test_the_best_checkpoint_has_the_average_that_was_validated(tiny, tmp_path):
    """It goes on from there as a training does that was not cut short."""
    name = "{step}-{val/errors:.0f}"
    best = ModelCheckpoint(
        tmp_path, name, "val/errors", auto_insert_metric_name=False, save_top_k=-1
    )
    settings = {"max_steps": 8, "val_check_interval": 2}
    callbacks = [best, EarlyStopping("val/errors", patience=9), TrainedAverage(0.8)]
    fit = trainer(tmp_path, callbacks=callbacks, enable_checkpointing=True, **settings)
    fit.fit(Recorded(tiny), batches(), batches())
    whole = {name: value.clone() for name, value in tiny.state_dict().items()}
    paths = sorted(tmp_path.glob("*-*.ckpt"))
    assert len(paths) == 4
    assert len({path.stem.partition("-")[2] for path in paths}) > 1
    for path in paths:
        load_weights(tiny, read_base(path))
        (counted,) = trainer(tmp_path).validate(Recorded(tiny), batches(), verbose=False)
        assert f"{counted['val/errors']:.0f}" == path.stem.partition("-")[2]
    on = trainer(tmp_path, callbacks=TrainedAverage(0.8), **settings)
    on.fit(Recorded(tiny), batches(), batches(), ckpt_path=paths[1], weights_only=True)
    assert all(torch.equal(whole[name], value) for name, value in tiny.state_dict().items())


@pytest.mark.parametrize(("seconds", "said"), [(100, ["15"]), (3, [])])
def test_how_long_all_trainings_take_is_said_once(
    tiny, tmp_path, monkeypatch, caplog, seconds, said
):
    """Measured from the fifth to the fifteenth step; not where it is less than a minute."""
    times = iter([7.0, 7.0 + seconds])
    monkeypatch.setattr("lora_mnist.training.callbacks.time.monotonic", lambda: next(times))
    caplog.set_level("INFO", "lora_mnist.training.callbacks")
    fit = trainer(tmp_path, max_steps=30, accumulate_grad_batches=2, callbacks=LogDuration(3))
    fit.fit(Recorded(tiny), batches())
    minutes = [
        re.search(r"3 trainings of 30 steps: some (\d+) min", each) for each in caplog.messages
    ]
    assert [each[1] for each in minutes if each] == said
