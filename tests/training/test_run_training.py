import pytest
import yaml
from composed import evaluated, load_adapter_tensors
from helpers.commands import read_csv, read_results
from helpers.repairs import QUIET, TRIALS
from lightning.pytorch.strategies import SingleDeviceStrategy

from lora_mnist.classifier.train_digests_file import read_train_digests
from lora_mnist.errors import UserError
from lora_mnist.lora.adapter import read_metadata
from lora_mnist.lora.point import Point
from lora_mnist.measure.scale_curve import row_at
from lora_mnist.run_paths import LAST_CHECKPOINT
from lora_mnist.training import run_training, trials


def test_of_several_processes_the_first_one_advises(go, monkeypatch):
    def broadcast(self, value, src=0):
        advice = isinstance(value, tuple) and isinstance(value[0], Point)
        return (Point(0.4, 0.0), value[1]) if advice else value

    monkeypatch.setattr(SingleDeviceStrategy, "broadcast", broadcast)
    assert read_results(go("broadcast", *QUIET))["point"] == {"scale": 0.4, "offset": 0}


def test_without_a_training_the_offset_alone_is_saved(go):
    """The adapter is an offset on the base's logit; no image of the class was trained on."""
    alone = ("lora.scale=0", "lora.offset=auto", "callbacks=none", "logger=csv")
    folder = go("an offset", *alone, "refit=auto", *TRIALS)  # of which none is trained
    results = read_results(folder)
    assert len(results["scale_curve"]["rows"]) == 1
    point = results["point"]
    assert (point["scale"], results["steps"]) == (0, 0)
    assert point["offset"] == row_at(results["scale_curve"], 0)["offset"] != 0
    assert not results["choices"]["refit"]["value"]
    assert results["test"]["repaired"] + results["test"]["broken"]
    counts = results["parameters"]
    assert (counts["lora"], counts["trainable"]) == (0, 0)
    outputs = folder.parents[1]
    assert evaluated(outputs, folder)["test"] == results["test"]
    assert evaluated(outputs, folder, "scale=auto")["point"] == point
    assert evaluated(outputs, folder, "offset=0")["test"]["broken"] == 0
    for key, tensor in load_adapter_tensors(folder).items():  # PEFT has no offset without LoRA
        if key.endswith(("lora_A.weight", "lora_B.weight")):
            assert ("linear2" in key) > tensor.any()
            assert 1 in tensor.shape
    with pytest.raises(UserError, match=r"^lora\.scale=0 lora\.offset=0: "):
        go("nothing", *QUIET, "lora.scale=0", "lora.offset=0")
    with pytest.raises(UserError, match=r"^refit=true: .*lora\.scale=0"):
        go("nothing", *QUIET, "lora.scale=0", "lora.offset=auto", "refit=true")
    assert not len(
        read_train_digests(folder / "adapter", read_metadata(folder / "adapter")["train_digests"])
    )


def test_of_several_trainings_no_checkpoint_is_kept_and_curves_have_their_names(go, caplog):
    """A log line names a user's callback that is dropped."""
    own = "+callbacks.own={_target_: lightning.pytorch.callbacks.ModelCheckpoint}"
    caplog.set_level("INFO", "lora_mnist")
    options = ("refit=true", "logger=[csv,tensorboard]", "trainer.val_check_interval=4")
    folder = go("two", *options, own)
    assert "left in training 1 of 2" in caplog.text
    assert not (folder / LAST_CHECKPOINT).exists()
    assert "callbacks: no checkpoint is kept, since this repair has 2 trainings" in caplog.text
    versions = {path.parent.name for path in folder.glob("*/events.out.*")}
    assert {version.partition("training=")[2] for version in versions} == {
        *("", "lora_0.003", "refit_0.003")
    }
    curves = [read_csv(path) for path in sorted(folder.glob("csv/*/metrics.csv"))]
    assert len([curve for curve in curves if any(row.get("train/loss") for row in curve)]) == 2


def test_a_rate_after_one_that_diverged_has_curves_of_its_own(go, monkeypatch):
    monkeypatch.setattr(trials, "LEARNING_RATES", (1e30, 0.003))
    options = ("logger=csv", "trainer.log_every_n_steps=1", "optimizer.lr=auto")
    folder = go("steep alone", *options, "+trainer.num_sanity_val_steps=1")
    curve = read_results(folder)["validation_errors"]
    assert all(step for step, _ in curve)  # the batch before the first step is no validation
    logged = [read_csv(path) for path in sorted(folder.glob("csv/*/metrics.csv"))]
    assert len(logged) == 2
    of_run = yaml.safe_load((folder / "csv" / "version_0" / "hparams.yaml").read_text())
    assert of_run["optimizer"]["lr"] == 0.003  # not that of the training that was given up
    errors = [int(float(row["val/errors"])) for row in logged[1] if row.get("val/errors")]
    assert errors[: len(curve)] == [each for _, each in curve]


def test_a_training_is_compared_with_the_offset_alone_also_below_scale_0():
    rows = [{"scale": -0.5, "score": 0.9}, {"scale": 0.0, "score": 0.8}]
    made = run_training.TrainingResult(
        *[None] * 7, point=Point(-0.5), curve={"rows": rows}, image_scores=None
    )
    assert made.beats_offset


def test_callbacks_that_ask_for_a_logger_find_one(go):
    """Loggers that keep one run, as W&B's and MLflow's, see none of several trainings."""
    own = "+logger.own={_target_: lightning.pytorch.loggers.logger.DummyLogger}"
    options = ("callbacks=lr_monitor", "logger=csv", "~logger.csv", own, "refit=true")
    assert read_results(go("monitored", *options))["choices"]["refit"]["value"]
