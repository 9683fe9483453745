"""Runs of every stage, with a small network, few steps and few images."""

import os
import signal
import sys
import warnings

import pytest
import torch
from composed import FEW, QUICK, SMALL, adapter_of, composed, evaluated, run, small_net
from helpers.commands import files_of, only_run, read_results, refused
from omegaconf import OmegaConf
from source_notebook import RichBoyNet, fit, load, loader

from lora_mnist.classifier.base import sha256_of_base
from lora_mnist.commands.train import train
from lora_mnist.config.command import Run
from lora_mnist.config.keys import checked
from lora_mnist.data import Images
from lora_mnist.errors import TrainingError
from lora_mnist.lora.adapter import read_metadata
from lora_mnist.lora.base_state import base_state_dict, changed_tensors, fingerprint
from lora_mnist.measure.dial import row_at
from lora_mnist.measure.significance import weakest
from lora_mnist.show.reading import Reading
from lora_mnist.show.verdict import verdict
from lora_mnist.training.images import _limited

NINES = ("stage=lora", "digit=9")


def newest(outputs):
    return max((outputs / "lora").iterdir())


def test_a_base_and_a_repair_with_its_proof(made):
    results, pretrained = (read_results(only_run(made, stage)) for stage in ("lora", "pretrain"))
    assert (pretrained["stage"], pretrained["steps"], pretrained["targets"]) == ("pretrain", 30, [])
    assert fingerprint(small_net(made).state_dict()) == pretrained["base_sha256"]
    for split in ("val", "test"):
        before, after = results[f"{split}_base"], results[split]
        assert sum(before["images_per_class"]) == 500
        for key in ("errors", "false_calls"):
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
    """``digit`` is another name of ``target``, in a file too; what is typed goes first."""
    both = composed("train", *NINES, "target=3")
    assert refused(checked, both).startswith("digit=9: ")
    for typed in ("target=3", "digit=9"):  # the other one stands in a file
        assert checked(both, Run(tmp_path, (typed,))).target == int(typed[-1])
    both_typed = Run(tmp_path, ("digit=9", "target=3"))
    assert refused(checked, both, both_typed).startswith("digit=9: ")
    assert composed("train", *NINES).target == 9
    assert composed("train", "experiment=repair").target == "weakest"
    assert composed("train", "experiment=repair", "digit=4").target == 4
    assert composed("train", "stage=lora", "experiment=notebook").target == 9
    assert composed("train", "stage=pretrain", "experiment=notebook").target is None
    assert refused(run, tmp_path, "stage=lora").startswith("target: missing; ")


def test_a_training_of_little_use_leaves_the_base_alone(outputs):
    """It diverged, or the new base knows one class, or nothing: that one stays in its folder."""
    before = files_of(outputs / "base")
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
        assert fingerprint(state) == results["base_sha256"]
    assert files_of(outputs / "base") == before


def test_a_job_of_a_sweep_replaces_no_base_but_one_that_is_named(outputs, tmp_path):
    before, mine = files_of(outputs / "base"), tmp_path / "mine.ckpt"
    cfg = composed("train", "stage=pretrain", "seed=5", *QUICK, f"paths.outputs={outputs}")
    results = train(cfg, Run(tmp_path / "1", is_sweep=True))
    sha256, weights = results["base_sha256"], tmp_path / "1" / results["weights"]
    assert weights.resolve() == (outputs / "base" / f"mnist-{sha256[:12]}.ckpt").resolve()
    cfg.base_ckpt = str(mine)
    named = Run(tmp_path / "2", (f"base_ckpt={mine}",), is_sweep=True)
    train(cfg, named)
    cfg.base_ckpt = str(outputs / "base" / "notebook.ckpt")  # as an experiment names it
    by_experiment = Run(tmp_path / "3", ("experiment=notebook",), is_sweep=True)
    train(cfg, by_experiment)
    after = files_of(outputs / "base")
    assert after.pop(outputs / "base" / f"mnist-{sha256[:12]}.ckpt")
    assert sha256_of_base(mine) == sha256
    assert after == before


def test_a_record_says_what_changes_numbers_and_not_where_they_lie(outputs, tmp_path):
    """Trainings alike leave files alike: an adapter that is given away names no folder."""
    numbers = ("trainer.max_steps=2", "~callbacks.checkpoint")
    left = []
    for name in ("one", "two"):
        places = (f"paths.run={tmp_path}/{name}", f"run_name={name}", "figures=false")
        typed = (*places, f"hydra.run.dir={name}", "logger=none", *numbers)
        cfg = composed("train", *NINES, *QUICK, f"paths.outputs={outputs}", numbers[0])
        of_command_line = Run(tmp_path / name, typed)
        train(cfg, of_command_line)
        left.append([path.read_bytes() for path in sorted((tmp_path / name).glob("adapter/*"))])
        assert read_metadata(tmp_path / name / "adapter")["made"]["overrides"] == [numbers[0]]
    assert left[0] == left[1]


def test_the_base_is_proven_unchanged(outputs):
    with pytest.raises(RuntimeError, match="linear1.bias"):
        run(outputs, *NINES, "+callbacks.spoil._target_=helpers.callbacks.Spoil")
    assert not list(outputs.glob("lora/*/*"))


def test_an_adapter_is_saved_as_far_up_as_advised(outputs):
    """The dial is tried on validation images; where the adapter does nothing but harm, it is 0."""
    ranks = ("lora=pissa", "lora.rank=auto")
    options = (*NINES, *ranks, "lora.scale=auto", "trainer.max_steps=20")
    results = run(outputs, *options)
    lora_A = [A for name, A in sorted(adapter_of(newest(outputs)).items()) if "lora_A" in name]
    assert [len(A) for A in lora_A] == [16, 10]  # the full rank
    dial = results["dial"]
    assert dial["images"] == 500
    assert dial["advised"] == results["point"] == results["choices"]["point"]["value"]
    for scale, split in ((0, "val_base"), (results["point"]["scale"], "val")):
        row = row_at(dial, scale)
        for key in ("errors", "errors_of_target"):
            assert row[key] == results[split][key]
    harmful = run(outputs, *options, "optimizer.lr=0.1")
    assert harmful["point"]["scale"] == 0
    assert evaluated(outputs)["test"]["broken"] == harmful["test"]["broken"] == 0


def test_a_trial_leaves_nothing_that_other_commands_take(outputs):
    """Nor does one batch have to be right about more than one class."""
    before = files_of(outputs / "base")
    options = ("digit=9", "+trainer.fast_dev_run=true", "optimizer.lr=1e3")
    for stage in ("lora", "pretrain"):
        results = run(outputs, f"stage={stage}", *options)
        assert (results["steps"], results["adapter"]) == (1, None)
    learnt = ("+trainer.fast_dev_run=true", "optimizer.lr=0.01", "batches.batch_size=500")
    run(outputs, "stage=pretrain", *learnt)
    assert not list(outputs.rglob("adapter"))
    assert files_of(outputs / "base") == before


def test_a_debug_run_leaves_no_adapter_and_no_copy_of_its_base(outputs, tmp_path):
    mine = (f"base_ckpt={outputs}/base/mnist.ckpt", f"paths.outputs={tmp_path}/mine")
    options = (*SMALL, *FEW, "debug=overfit", "trainer.max_steps=3")
    results = train(composed("train", *NINES, *options, *mine))
    assert (results["steps"], results["adapter"]) == (3, None)
    assert not [*tmp_path.glob("mine/**/adapter"), *tmp_path.glob("mine/base/*")]


def test_images_that_the_base_has_learnt_choose_nothing(made, tmp_path):
    """MNIST's have no files: they are known by their pixels."""
    base = f"base_ckpt={made}/base/mnist.ckpt"
    for count, left_out in ((600, 100), (100, 0)):
        results = run(tmp_path, *NINES, base, f"data.val_size={count}")
        assert results["validation_images"] == count - left_out
        assert bool(results["left_out"]) == bool(left_out)


def test_a_network_that_changes_its_buffers_is_refused_before_training(outputs, tmp_path):
    base = torch.load(outputs / "base" / "mnist.ckpt", weights_only=True)["state_dict"]
    torch.save({**base, "calls": torch.zeros(())}, tmp_path / "counting.pt")
    counting = ("net._target_=helpers.nets.Counting", f"base_ckpt={tmp_path}/counting.pt")
    assert refused(run, outputs, *NINES, *counting).startswith(f"{counting[0]}: ")
    assert not (outputs / "lora").exists()


def test_the_weakest_class_is_trained_as_if_it_were_named(outputs):
    """The same seed gives the same numbers, and another one gives others."""
    same = ("stage=lora", "batches.replay=9")
    results = run(outputs, *same, "digit=weakest")
    counts = (results["val_base"][f"{key}_per_class"] for key in ("errors", "images"))
    (chosen,) = results["targets"]
    assert chosen == weakest(*counts)
    adapter = adapter_of(newest(outputs))
    named = run(outputs, *same, f"digit={chosen}")
    targets = [each["choices"].pop("target") for each in (results, named)]
    assert targets[0]["value"] == targets[1]["value"]
    assert targets[0]["images"] == 500
    of_time = {key: results[key] for key in ("seconds", "ended")}
    assert {**named, **of_time} == results
    assert not changed_tensors(adapter, adapter_of(newest(outputs)))
    other = run(outputs, *same, f"digit={chosen}", "seed=1")
    assert other["test"] != results["test"]
    assert other["test_base"] == results["test_base"]
    assert changed_tensors(adapter, adapter_of(newest(outputs)))


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


def test_a_share_of_the_images_is_one_batch_at_least(outputs):
    shares = ("+trainer.limit_test_batches=0.05", "+trainer.limit_val_batches=0.2")
    results = run(outputs, *NINES, *shares, "data.eval_batch_size=100")
    for split in ("val", "test"):
        assert sum(results[split]["images_per_class"]) == 100
    in_rows = Images(torch.arange(10)[:, None, None, None], torch.arange(10))
    assert _limited(in_rows, 0.4, batch_size=2).labels.tolist() == [0, 3, 6, 9]


def test_a_rate_that_nothing_bears_is_no_repair(outputs):
    options = ("stage=lora", "digit=4", "batches.replay=20", "lora.dropout=0.2")
    auto = run(outputs, *options, "optimizer.lr=auto")
    assert auto["choices"]["rate"]["value"] == 0.001
    useless = run(outputs, *options[:2], "lora.alpha=1e6", "optimizer.lr=auto")
    assert verdict(Reading(useless))[0].text.startswith("Do not keep this repair")
