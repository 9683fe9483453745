"""Runs of every stage, with a small network, few steps and, in most tests, few images."""

import csv
import os
import re
import signal
import sys
import warnings
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from composed import QUICK, composed, evaluated, logged, run, small_net
from helpers.callbacks import Meanwhile
from helpers.commands import only_run, read_results
from omegaconf import OmegaConf
from safetensors.torch import load_file
from source_notebook import RichBoyNet, fit, load, loader

import lora_mnist.trials
from lora_mnist.errors import TrainingError, UserError
from lora_mnist.lora.base_state import base_state_dict, changed_tensors, fingerprint
from lora_mnist.lora.peft import WEIGHTS_NAME
from lora_mnist.repair.significance import weakest
from lora_mnist.run import Run
from lora_mnist.train import train


def newest(outputs, stage="lora"):
    return max((outputs / stage).iterdir())


def adapter_of(folder):
    return load_file(folder / "adapter" / WEIGHTS_NAME)


def without(values, key):
    return {name: value for name, value in values.items() if name != key}


def bases(outputs):
    return {path.name: path.read_bytes() for path in sorted((outputs / "base").glob("*.ckpt"))}


def test_pretraining_leaves_a_base(made):
    folder = only_run(made, "pretrain")
    results = read_results(folder)
    assert list(results) == [
        *("stage", "dataset", "overrides", "seed", "targets", "targets_chosen"),
        *("replay", "target_weight", "classes", "data_sha256"),
        *("training_images_per_class", "validation_images", "mean", "std", "val_from"),
        *("held_out", "copies", "base_pretrained_here", "test_held_out_now", "parameters"),
        *("val", "test", "base_sha256", "base_unchanged", "adapter", "steps", "best", "lr"),
        "seconds",
    ]
    assert (results["stage"], results["steps"], results["targets"]) == ("pretrain", 30, [])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}", folder.name)
    assert sum(results["test"]["images_per_class"]) == 10_000
    assert sum(results["val"]["images_per_class"]) == 5_000
    assert fingerprint(small_net(made).state_dict()) == results["base_sha256"]
    assert not (folder / "report.html").exists()  # figures=false


def test_a_repair_leaves_an_adapter_and_a_proof(made):
    folder = only_run(made, "lora")
    results, pretrained = read_results(folder), read_results(only_run(made, "pretrain"))
    for split in ("val", "test"):
        for key in ("errors", "false_calls"):
            assert results[split][f"{key}_of_target"] == results[split][f"{key}_per_class"][9]
            assert results[f"{split}_base"].pop(f"{key}_of_target") > 0
        assert results[f"{split}_base"] == pretrained[split]
    assert results["base_sha256"] == pretrained["base_sha256"]
    assert results["base_unchanged"] is True
    test = results["test"]
    assert test["errors_of_target"] < results["test_base"]["errors_per_class"][9]
    base, lora = 784 * 16 + 16 + 16 * 10 + 10, 784 + 16 + 16 + 10
    share = {"increase_percent": round(100 * lora / base, 3)}
    assert results["parameters"] == {"base": base, "lora": lora, "trainable": lora, **share}
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    names = [name for name in checkpoint["state_dict"] if name.startswith("net.")]
    assert {name.rpartition(".")[2] for name in names} == {"lora_A", "lora_B"}
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["index"] for row in rows] == [str(number) for number in range(10_000)]
    assert sum(row["after"] != row["label"] for row in rows) == test["errors"]
    assert (folder / "report.html").is_file()


def of_the_process():
    """The state that a command must not change; Lightning keeps the seed in the environment."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PL_")}
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return [handlers, list(sys.path), environment, list(warnings.filters), sys.excepthook]


def test_a_notebook_gets_the_results_back(outputs):
    """In a precision that NumPy does not know."""
    options = ("digit=[3,5]", "data.replay=10", "trainer.precision=bf16-mixed")
    cfg = composed("train", "stage=lora", *QUICK, f"paths.outputs={outputs}", *options)
    before = OmegaConf.to_yaml(cfg)
    process = of_the_process()
    results = train(cfg)
    assert OmegaConf.to_yaml(cfg) == before
    folder = only_run(outputs, "lora")
    assert results == read_results(folder)
    assert (folder / "predictions.csv").is_file()
    assert (results["stage"], results["steps"]) == ("lora", 3)
    assert torch.is_grad_enabled()
    assert of_the_process() == process


def test_a_command_line_that_train_refuses(tmp_path):
    cfg = composed("train", "stage=lora", *QUICK, f"resume={tmp_path}", "digit=9")
    for stage, command, message in (
        ("eval", Run(tmp_path), "^stage=eval: expected one of pretrain, lora"),
        ("lora", Run(tmp_path, ("digit=9", "target=3")), "^digit=9: expected target alone"),
    ):
        cfg.stage = stage
        with pytest.raises(UserError, match=message):
            train(cfg, command)
    assert not list(tmp_path.iterdir())


def test_the_base_is_published_last(outputs, monkeypatch):
    before = bases(outputs)
    monkeypatch.setattr(lora_mnist.train, "report_and_close_loggers", None)
    with pytest.raises(TypeError):
        run(outputs, "stage=pretrain")
    assert bases(outputs) == before


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (("digit=9",), None),
        (("optimizer.lr=1e6",), "no more than by always saying"),
    ],
)
def test_a_base_that_is_not_published_stays_in_its_folder(outputs, overrides, error):
    before = bases(outputs)
    with pytest.raises(TrainingError, match=error) if error else nullcontext():
        run(outputs, "stage=pretrain", "trainer.max_steps=10", *overrides)
    assert bases(outputs) == before
    folder = newest(outputs, "pretrain")
    results = read_results(folder)
    if overrides == ("digit=9",):
        assert results["test"]["accuracy"] < 0.12
    (base,) = folder.glob("*-*.ckpt")
    assert base.name == results["weights"] == f"mnist-{results['base_sha256'][:12]}.ckpt"
    state = torch.load(base, weights_only=True)["state_dict"]
    assert fingerprint(state) == results["base_sha256"]


def test_a_job_of_a_sweep_replaces_no_base_but_one_that_is_named(outputs, tmp_path):
    before, mine = bases(outputs), tmp_path / "mine.ckpt"
    for folder, named in (("one", ()), ("two", (f"base_ckpt={mine}",))):
        command = Run(tmp_path / folder, is_sweep=True)
        options = ("stage=pretrain", *QUICK, f"paths.outputs={outputs}", "seed=5", *named)
        results = train(composed("train", *options), command)
        assert mine.exists() == bool(named)
    after = bases(outputs)
    own = f"mnist-{results['base_sha256'][:12]}.ckpt"
    assert after.pop(own) == mine.read_bytes()
    assert after == before


def test_a_training_that_diverges_leaves_no_results(outputs):
    before = bases(outputs)
    with pytest.raises(TrainingError, match=r"^optimizer\.lr=1e\+25: .* expected a smaller"):
        run(outputs, "stage=pretrain", "optimizer.lr=1e25", "trainer.max_steps=30")
    assert not (newest(outputs, "pretrain") / "results.json").exists()
    assert bases(outputs) == before


def test_a_training_needs_a_step(outputs):
    with pytest.raises(UserError, match=r"^trainer.max_steps=0 .*expected at least one step"):
        run(outputs, "stage=pretrain", "trainer.max_steps=0")


def test_outputs_that_are_no_numbers_are_no_results(outputs):
    with pytest.raises(TrainingError, match="outputs are not finite .* a smaller optimizer.lr"):
        run(outputs, "stage=lora", "optimizer.lr=1e20", "trainer.max_steps=1")
    assert not list(outputs.glob("lora/*/results.json"))


def test_the_base_is_proven_unchanged(outputs, monkeypatch):
    with logged("lora_mnist") as text:
        assert run(outputs, "stage=lora")["base_unchanged"] is True
    assert "base unchanged: 4 tensors, bit for bit" in text.getvalue()

    def spoil(trainer, module, data):
        module.net.get_parameter("linear1.bias").data[0] += 1e-6

    monkeypatch.setattr(lora_mnist.trials, "load_best_weights", spoil)
    with pytest.raises(RuntimeError, match="training the adapter changed the base: linear1.bias"):
        run(outputs, "stage=lora")
    assert not (newest(outputs) / "adapter").exists()
    assert not (newest(outputs) / "results.json").exists()


def test_variants_train_and_load_on_the_original_base(outputs):
    options = ("stage=lora", "lora.rank=2", "lora.dropout=0.1", "lora.rank_pattern={linear2: 1}")
    size = 2 * (784 + 16) + (16 + 10)
    trained = run(outputs, *options, "lora=rslora", "lora.scale=0.5")
    assert trained["parameters"]["lora"] == trained["parameters"]["trainable"] == size
    assert trained["base_unchanged"]
    assert trained["test"] != trained["test_base"]
    loaded = evaluated(outputs)
    assert loaded["test_base"] == trained["test_base"]
    assert loaded["test"]["errors_per_class"] == trained["test"]["errors_per_class"]


def test_the_dial_is_tried_on_validation_images(outputs):
    results = run(outputs, "stage=lora", "trainer.max_steps=30")
    dial = results["dial"]
    assert dial["images"] == 500
    for scale, split in ((0, "val_base"), (1, "val")):
        place = dial["scales"].index(scale)
        for key in ("errors", "errors_of_target"):
            assert dial[key][place] == results[split][key]
    assert dial["saved"] == 1
    assert 0 < dial["forward_passes"] <= 4 * 75  # no more than there were in training
    assert run(outputs, "stage=lora", "dial=false")["dial"] is None
    assert run(outputs, "stage=lora", "data.val_size=0")["dial"] is None


@pytest.mark.slow
def test_an_adapter_is_saved_as_far_up_as_advised(outputs):
    options = ("stage=lora", "lora=pissa", "trainer.max_steps=20", "lora.rank=2")
    whole = run(outputs, *options)
    scaled = run(outputs, *options, "lora.scale=auto")
    assert scaled["dial"] == {**whole["dial"], "saved": whole["dial"]["advised"]}
    place = whole["dial"]["scales"].index(whole["dial"]["advised"])
    assert scaled["val"]["errors"] == whole["dial"]["errors"][place]
    results = run(outputs, *options, "lora.scale=auto", "optimizer.lr=0.1")
    assert results["dial"]["advised"] == results["dial"]["saved"] == 0  # it does nothing but harm
    assert evaluated(outputs)["test"]["errors"] == results["test"]["errors"]
    assert results["test"]["errors"] == results["test_base"]["errors"]
    assert results["test"]["broken"] == 0


def test_a_trial_leaves_nothing_that_other_commands_take(outputs):
    """Nor does one batch have to be right about more than one class."""
    for stage, key in (("lora", "adapter"), ("pretrain", "weights")):
        results = run(outputs, f"stage={stage}", "+trainer.fast_dev_run=true", "optimizer.lr=1e3")
        assert (results["steps"], results.get(key)) == (1, None)
        left = {path.name for path in newest(outputs, stage).rglob("*") if path.is_file()}
        assert left <= {"results.json", "predictions.csv", "run.json", ".lock"}


def test_a_folder_holds_one_run(outputs, tmp_path):
    """Also from Python."""
    command, options = Run(tmp_path / "run"), (*QUICK, f"paths.outputs={outputs}")
    train(composed("train", "stage=lora", *options), command)
    before = {path: path.read_bytes() for path in command.folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"^hydra\.run\.dir=.*: has a results\.json already; ex"):
        train(composed("train", "stage=lora", "digit=3", *options), command)
    with pytest.raises(UserError, match=r"^resume=.*: expected .*last.ckpt, to go on"):
        train(composed("train", "stage=lora", *options, f"resume={command.folder}"))
    assert {path: path.read_bytes() for path in before} == before


def test_a_base_in_the_folder_of_the_run_stays(outputs, tmp_path):
    weights = tmp_path / "run" / "checkpoints" / "last.ckpt"
    weights.parent.mkdir(parents=True)
    weights.write_bytes((outputs / "base" / "mnist.ckpt").read_bytes())
    before = weights.read_bytes()
    cfg = composed("train", "stage=lora", *QUICK, f"base_ckpt={weights}")
    with pytest.raises(
        UserError, match=r"^hydra\.run\.dir=.*: has a checkpoints already; expected"
    ):
        train(cfg, Run(tmp_path / "run"))
    assert weights.read_bytes() == before
    assert [path for path in tmp_path.joinpath("run").rglob("*") if path.is_file()] == [weights]


def test_a_base_that_was_trained_on_another_split_is_told(tmp_path):
    run(tmp_path, "stage=pretrain", "trainer.max_steps=60", "data.batch_size=50")
    with logged("lora_mnist.disk.record") as log:
        run(tmp_path, "stage=lora")
    assert "the base was trained" not in log.getvalue()
    with logged("lora_mnist.disk.record") as log:
        run(tmp_path, "stage=lora", "data.val_size=600")
    assert "data.val_size=600: the base was trained with 500 on these images" in log.getvalue()


def test_one_training_at_a_time(outputs):
    """A second one, from another thread, is refused, and the first goes on."""
    Meanwhile.task = partial(run, outputs, "stage=lora")
    run(outputs, "stage=lora", "+callbacks.mine._target_=helpers.callbacks.Meanwhile")
    assert str(Meanwhile.error).startswith("train() runs in another thread: expected one ")
    run(outputs, "stage=lora")


def test_a_network_that_changes_its_buffers_is_refused_before_training(outputs, tmp_path):
    base = torch.load(outputs / "base" / "mnist.ckpt", weights_only=True)["state_dict"]
    torch.save({**base, "calls": torch.zeros(())}, tmp_path / "counting.pt")
    counting = ("net._target_=helpers.nets.Counting", f"base_ckpt={tmp_path}/counting.pt")
    with pytest.raises(UserError, match=r"^net\._target_=helpers\.nets\.Counting: .*; calls has"):
        run(outputs, "stage=lora", *counting)
    assert not (outputs / "lora").exists()


def test_the_weakest_class_is_trained_as_if_it_were_named(outputs):
    """The same seed gives the same numbers, and another one gives others."""
    same = ("stage=lora", "data.replay=9")
    results = run(outputs, *same, "digit=weakest")
    counts = (results["val_base"][f"{key}_per_class"] for key in ("errors", "images"))
    (chosen,) = results["targets"]
    assert chosen == weakest(*counts)
    adapter = adapter_of(newest(outputs))
    named = run(outputs, *same, f"digit={chosen}")
    assert results["targets_chosen"] != named.pop("targets_chosen")
    assert without(named, "seconds") == without(without(results, "seconds"), "targets_chosen")
    assert not changed_tensors(adapter, adapter_of(newest(outputs)))
    other = run(outputs, *same, f"digit={chosen}", "seed=1")
    assert other["test"] != results["test"]
    assert other["test_base"] == results["test_base"]
    assert changed_tensors(adapter, adapter_of(newest(outputs)))


def test_notebook_experiment_gives_the_notebooks_own_weights(tmp_path):
    torch.manual_seed(3)
    batches, net = loader(load(train=True)), RichBoyNet()
    fit(batches, net, limit=10)
    options = ("trainer=cpu", "logger=none", "trainer.max_steps=10", "seed=3")
    options = (*options, "+trainer.limit_test_batches=1", f"paths.outputs={tmp_path}")
    train(composed("train", "stage=pretrain", "experiment=notebook", *options))
    ours = torch.load(tmp_path / "base" / "mnist.ckpt", weights_only=True)["state_dict"]
    assert changed_tensors(net.state_dict(), ours) == []
    assert base_state_dict(net).keys() == ours.keys()


@pytest.mark.parametrize("lacking", ["data.val_size=0", "+trainer.limit_val_batches=0"])
def test_a_repair_without_validation_images_names_the_keys_that_make_it_run(outputs, lacking):
    options = ("experiment=repair", "target=weakest", lacking)
    with pytest.raises(UserError, match=r"^optimizer\.lr=auto: ") as caught:
        run(outputs, *options)
    named = re.findall(r"[\w.]+=[\w.]+", str(caught.value).partition(" say ")[2])
    assert "target=CLASS" in named
    named[named.index("target=CLASS")] = "target=9"
    assert run(outputs, *options, *named)["dial"] is None


def test_a_learning_rate_that_does_no_harm(outputs, caplog):
    """Nothing of its trial stays, neither weights nor random numbers drawn."""
    options = ("stage=lora", "digit=4", "data.replay=20", "lora.dropout=0.2", "lora.init_std=0.3")
    auto = run(outputs, *options, "optimizer.lr=auto")
    weights = adapter_of(newest(outputs))
    again = run(outputs, *options, f"optimizer.lr={auto['lr']}")
    assert without(auto, "seconds") == without(again, "seconds")
    for name, tensor in adapter_of(newest(outputs)).items():
        assert torch.equal(tensor, weights[name])
    steep = run(outputs, *options[:-1], "lora.alpha=1000", "optimizer.lr=auto")
    assert steep["lr"] < auto["lr"]
    with pytest.raises(TrainingError, match="expected another learning rate"):
        run(outputs, *options[:2], "lora.alpha=1e6", "optimizer.lr=auto")
    assert "optimizer.lr=auto: each of 0.003, " in caplog.text


def test_a_few_images_are_learnt_at_a_larger_rate(outputs):
    options = ("experiment=repair", "data.replay=20")
    assert run(outputs, *options, "digit=4")["lr"] == 0.003  # 350 images
    assert run(outputs, *options, "digit=[4,5]")["lr"] == 0.001  # 670


def test_a_repair_has_no_random_start(outputs):
    """Only the order of the images is drawn."""
    options = ("experiment=repair", "digit=4", "data.replay=20", "data.seed=0", "lora.rank=8")
    run(outputs, *options, "seed=1")
    weights = adapter_of(newest(outputs))
    run(outputs, *options, "seed=2")
    for name, tensor in adapter_of(newest(outputs)).items():
        assert torch.equal(tensor, weights[name])
