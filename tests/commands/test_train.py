"""Runs of every stage, with a small network, few steps and few images."""

import os
import signal
import sys
import warnings

import pytest
import torch
from composed import QUICK, composed, evaluated, load_adapter_tensors, run, small_net
from helpers.commands import list_files, only_run, read_results, refused
from omegaconf import OmegaConf
from source_notebook import RichBoyNet, fit, load, loader

from lora_mnist.commands.train import train
from lora_mnist.config.keys import resolve_configuration
from lora_mnist.config.run import Run
from lora_mnist.errors import TrainingError
from lora_mnist.lora.base_state import base_state_dict, changed_tensors, hash_tensors
from lora_mnist.measure.scale_curve import row_at
from lora_mnist.measure.significance import find_weakest
from lora_mnist.show.run_results import RunResults
from lora_mnist.show.verdict import describe_run

NINES = ("stage=lora", "digit=9")


def newest(outputs):
    return max((outputs / "lora").iterdir())


def test_a_base_and_a_repair_with_its_proof(made):
    results, pretrained = (read_results(only_run(made, stage)) for stage in ("lora", "pretrain"))
    assert (pretrained["stage"], pretrained["steps"], pretrained["targets"]) == ("pretrain", 30, [])
    assert hash_tensors(small_net(made).state_dict()) == pretrained["base_sha256"]
    for split in ("val", "test"):
        before, after = results[f"{split}_base"], results[split]
        assert sum(before["images_per_class"]) == 500
        for key in ("errors", "false_positives"):
            assert after[f"{key}_of_target"] == after[f"{key}_per_class"][9]
        assert before["errors_elsewhere"] == sum(before["errors_per_class"][:9])
        assert before.items() >= pretrained[split].items()
    assert results["test"]["errors_of_target"] < results["test_base"]["errors_of_target"]
    assert 0 < results["seconds"] < 600
    assert results["base_sha256"] == pretrained["base_sha256"]
    assert results["base_unchanged"] is True
    base, lora = 784 * 16 + 16 + 16 * 10 + 10, 784 + 16 + 16 + 10
    counts = {"base": base, "lora": lora, "trainable": lora}
    assert results["parameters"].items() >= counts.items()


def of_the_process():
    """The state that a command must not change; Lightning keeps the seed in the environment."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PL_")}
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return [handlers, list(sys.path), environment, list(warnings.filters), sys.excepthook]


def test_a_notebook_gets_the_results_back(outputs):
    """In a precision that NumPy does not know, with clipped gradients."""
    options = ("digit=[3,5]", "batches.replay=10", "trainer.precision=bf16-mixed")
    options = (*options, "+trainer.gradient_clip_val=1")
    cfg = composed("train", *NINES, *QUICK, f"paths.outputs={outputs}", *options)
    before, process = OmegaConf.to_yaml(cfg), of_the_process()
    results = train(cfg)
    assert OmegaConf.to_yaml(cfg) == before
    assert results == read_results(only_run(outputs, "lora"))
    assert (results["stage"], results["steps"]) == ("lora", 3)
    assert torch.is_grad_enabled()
    assert of_the_process() == process


def test_a_class_is_named_once(tmp_path):
    """``digit`` is another name of ``target``, also in a file; the command line overrides it."""
    both = composed("train", *NINES, "target=3")
    assert refused(resolve_configuration, both).startswith("digit=9: ")
    for command_line in ("target=3", "digit=9"):  # the other one stands in a file
        assert resolve_configuration(both, Run(tmp_path, (command_line,))).target == int(
            command_line[-1]
        )
    both_typed = Run(tmp_path, ("digit=9", "target=3"))
    assert refused(resolve_configuration, both, both_typed).startswith("digit=9: ")
    assert composed("train", *NINES).target == 9
    assert composed("train", "experiment=repair").target == "weakest"
    assert composed("train", "experiment=repair", "digit=4").target == 4
    assert composed("train", "stage=lora", "experiment=notebook").target == 9
    assert composed("train", "stage=pretrain", "experiment=notebook").target is None
    assert refused(run, tmp_path, "stage=lora").startswith("target: missing; ")


def test_a_training_of_little_use_leaves_the_base_alone(outputs):
    """It diverged, or the new base knows one class, or nothing: that one stays in its folder."""
    before = list_files(outputs / "base")
    options = ("stage=pretrain", "trainer.max_steps=10")
    with pytest.raises(TrainingError, match=r"^optimizer\.lr=1e\+25: "):
        run(outputs, *options, "optimizer.lr=1e25")
    assert not list(outputs.glob("pretrain/*/results.json"))
    run(outputs, *options, "digit=[3,4]")
    with pytest.raises(TrainingError):
        run(outputs, *options, "optimizer.lr=1e6")
    for folder in (outputs / "pretrain").iterdir():
        results = read_results(folder)
        (base,) = folder.glob("*.ckpt")
        assert base.name == results["weights"] == f"mnist-{results['base_sha256'][:12]}.ckpt"
        state = torch.load(base, weights_only=True)["state_dict"]
        assert hash_tensors(state) == results["base_sha256"]
    assert list_files(outputs / "base") == before


def test_the_base_is_proven_unchanged(outputs):
    with pytest.raises(RuntimeError, match="linear1.bias"):
        run(outputs, *NINES, "+callbacks.spoil._target_=helpers.callbacks.Spoil")
    assert not list(outputs.glob("lora/*/*"))


def test_an_adapter_is_saved_as_far_up_as_advised(outputs):
    """Validation images choose the scale; it is 0 where the adapter only harms."""
    ranks = ("lora=pissa", "lora.rank=auto")
    options = (*NINES, *ranks, "lora.scale=auto", "trainer.max_steps=20")
    results = run(outputs, *options)
    tensors = load_adapter_tensors(newest(outputs))
    lora_A = [A for name, A in sorted(tensors.items()) if "lora_A" in name]
    assert [len(A) for A in lora_A] == [16, 10]  # the full rank
    curve = results["scale_curve"]
    assert curve["images"] == 500
    assert curve["advised"] == results["point"] == results["choices"]["point"]["value"]
    for scale, split in ((0, "val_base"), (results["point"]["scale"], "val")):
        row = row_at(curve, scale)
        for key in ("errors", "errors_of_target"):
            assert row[key] == results[split][key]
    harmful = run(outputs, *options, "optimizer.lr=0.1")
    assert harmful["point"]["scale"] == 0
    assert evaluated(outputs)["test"]["broken"] == harmful["test"]["broken"] == 0


def test_images_the_base_was_trained_on_choose_nothing(made, tmp_path):
    """MNIST's have no files: they are known by their pixels."""
    base = f"base_ckpt={made}/base/mnist.ckpt"
    for count, excluded in ((600, 100), (100, 0)):
        results = run(tmp_path, *NINES, base, f"data.val_size={count}")
        assert results["validation_images"] == count - excluded
        assert bool(results["excluded"]) == bool(excluded)


def test_the_weakest_class_is_trained_as_if_it_were_named(outputs):
    """The same seed gives the same numbers, and another one gives others."""
    same = ("stage=lora", "batches.replay=9")
    results = run(outputs, *same, "digit=weakest")
    counts = (results["val_base"][f"{key}_per_class"] for key in ("errors", "images"))
    (chosen,) = results["targets"]
    assert chosen == find_weakest(*counts)
    adapter = load_adapter_tensors(newest(outputs))
    named = run(outputs, *same, f"digit={chosen}")
    targets = [each["choices"].pop("target") for each in (results, named)]
    assert targets[0]["value"] == targets[1]["value"]
    assert targets[0]["images"] == 500
    of_time = {key: results[key] for key in ("seconds", "ended")}
    assert {**named, **of_time} == results
    assert not changed_tensors(adapter, load_adapter_tensors(newest(outputs)))
    other = run(outputs, *same, f"digit={chosen}", "seed=1")
    assert other["test"] != results["test"]
    assert other["test_base"] == results["test_base"]
    assert changed_tensors(adapter, load_adapter_tensors(newest(outputs)))


def test_notebook_experiment_gives_the_notebooks_own_weights(tmp_path):
    torch.manual_seed(3)
    batches, net = loader(load(train=True)), RichBoyNet()
    fit(batches, net, limit=3)
    options = ("trainer=cpu", "logger=none", "trainer.max_steps=3", "seed=3")
    options = (*options, "+trainer.limit_test_batches=1", f"paths.outputs={tmp_path}")
    train(composed("train", "stage=pretrain", "experiment=notebook", *options))
    ours = torch.load(tmp_path / "base" / "notebook.ckpt", weights_only=True)["state_dict"]
    assert not (tmp_path / "base" / "mnist.ckpt").exists()
    assert changed_tensors(net.state_dict(), ours) == []
    assert base_state_dict(net).keys() == ours.keys()


def test_a_rate_that_nothing_bears_is_no_repair(outputs):
    options = ("stage=lora", "digit=4", "batches.replay=20", "lora.dropout=0.2")
    auto = run(outputs, *options, "optimizer.lr=auto")
    assert auto["choices"]["learning_rate"]["value"] == 0.001
    useless = run(outputs, *options[:2], "lora.alpha=1e6", "optimizer.lr=auto")
    assert describe_run(RunResults(useless))[0].text.startswith("Do not keep this repair")
