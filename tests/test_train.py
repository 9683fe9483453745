"""Runs of every stage, with a small network, few steps and, in most tests, few images."""

import csv
import os
import re
import signal
import sys
import warnings

import pytest
import torch
from composed import QUICK, composed, evaluated, logged, run, small_net
from helpers.commands import only_run, read_results
from omegaconf import OmegaConf
from safetensors.torch import load_file
from source_notebook import RichBoyNet, fit, load, loader

import lora_mnist.results
import lora_mnist.session
from lora_mnist.command import Run, checked_copy
from lora_mnist.errors import TrainingError, UserError
from lora_mnist.lora.adapter import WEIGHTS_NAME
from lora_mnist.lora.base_state import base_state_dict, changed_tensors, fingerprint
from lora_mnist.repair.significance import weakest
from lora_mnist.train import train

NINES = ("stage=lora", "digit=9")


def newest(outputs, stage="lora"):
    return max((outputs / stage).iterdir())


def adapter_of(folder):
    return load_file(folder / "adapter" / WEIGHTS_NAME)


def without(values, key):
    return {name: value for name, value in values.items() if name != key}


def rate_of(results):
    return results["choices"]["rate"]["value"]


def bases(outputs):
    return {path.name: path.read_bytes() for path in sorted((outputs / "base").glob("*.ckpt"))}


def test_pretraining_leaves_a_base(made):
    folder = only_run(made, "pretrain")
    results = read_results(folder)
    assert list(results) == [
        *("stage", "dataset", "overrides", "seed", "targets", "choices"),
        *("replay", "target_weight", "classes", "data_sha256"),
        *("training_images_per_class", "validation_images", "mean", "std", "val_from"),
        *("held_out", "copies", "base_pretrained_here", "test_held_out_now", "parameters"),
        *("val", "test", "base_sha256", "base_unchanged", "adapter", "scale", "dial", "steps"),
        *("better_preprocessing", "seconds"),
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
        elsewhere = sum(pretrained[split]["errors_per_class"][:9])
        assert results[f"{split}_base"].pop("errors_elsewhere") == elsewhere
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
    options = ("digit=[3,5]", "batches.replay=10", "trainer.precision=bf16-mixed")
    cfg = composed("train", *NINES, *QUICK, f"paths.outputs={outputs}", *options)
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


def test_a_class_is_named_once(cli, tmp_path):
    """``digit`` is another name of ``target``, in a file too; what is typed goes first."""
    both = composed("train", *NINES, "target=3")
    with pytest.raises(UserError, match="^digit=9: expected target=3 alone"):
        checked_copy(both)
    assert checked_copy(both, Run(tmp_path, ("target=3",))).target == 3
    assert checked_copy(composed("train", *NINES)).target == 9
    assert checked_copy(composed("train", "experiment=repair", "digit=4")).target == 4
    done = cli("train.py", *NINES, "target=3")
    assert (done.code, done.err) == (
        2,
        "digit=9: expected target alone, since both mean the same\n",
    )
    assert not list(tmp_path.iterdir())


def test_a_repair_asks_for_its_class(outputs):
    with pytest.raises(UserError, match="^target: missing; expected the class to repair"):
        run(outputs, "stage=lora")
    assert composed("train", "stage=lora", "experiment=notebook").target == 9
    assert composed("train", "stage=pretrain", "experiment=notebook").target is None
    assert composed("train", "experiment=repair").target == "weakest"


def test_the_base_is_published_last(outputs, monkeypatch):
    before = bases(outputs)
    monkeypatch.setattr(lora_mnist.results, "print_results", None)
    with pytest.raises(TypeError):
        run(outputs, "stage=pretrain")
    assert bases(outputs) == before


def test_a_base_that_is_not_published_stays_in_its_folder(outputs):
    """It knows one class, or nothing."""
    before = bases(outputs)
    run(outputs, "stage=pretrain", "trainer.max_steps=10", "digit=9")
    with pytest.raises(TrainingError, match="no more than by always saying"):
        run(outputs, "stage=pretrain", "trainer.max_steps=10", "optimizer.lr=1e6")
    assert bases(outputs) == before
    for folder in (outputs / "pretrain").iterdir():
        results = read_results(folder)
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
    with pytest.raises(TrainingError, match="outputs are not finite .* a smaller optimizer.lr"):
        run(outputs, *NINES, "optimizer.lr=1e20", "trainer.max_steps=1")
    assert not list(outputs.glob("*/*/results.json"))
    assert bases(outputs) == before


def test_the_base_is_proven_unchanged(outputs, monkeypatch):
    with logged("lora_mnist") as text:
        assert run(outputs, *NINES)["base_unchanged"] is True
    assert "base unchanged: 4 tensors, bit for bit" in text.getvalue()

    def spoil(trainer, module, data):
        module.net.get_parameter("linear1.bias").data[0] += 1e-6

    monkeypatch.setattr(lora_mnist.session, "load_best_weights", spoil)
    with pytest.raises(RuntimeError, match="training the adapter changed the base: linear1.bias"):
        run(outputs, *NINES)
    assert not (newest(outputs) / "adapter").exists()
    assert not (newest(outputs) / "results.json").exists()


def test_variants_train_and_load_on_the_original_base(outputs):
    options = (*NINES, "lora.rank=2", "lora.dropout=0.1", "lora.rank_pattern={linear2: 1}")
    size = 2 * (784 + 16) + (16 + 10)
    trained = run(outputs, *options, "lora=rslora", "lora.scale=0.5")
    assert trained["parameters"]["lora"] == trained["parameters"]["trainable"] == size
    assert trained["base_unchanged"]
    assert trained["test"] != trained["test_base"]
    loaded = evaluated(outputs)
    assert loaded["test_base"] == trained["test_base"]
    assert loaded["test"]["errors_per_class"] == trained["test"]["errors_per_class"]


def test_an_adapter_is_saved_as_far_up_as_advised(outputs):
    """The dial is tried on validation images; where the adapter does nothing but harm, it is 0."""
    options = (*NINES, "lora=pissa", "lora.rank=2", "lora.scale=auto", "trainer.max_steps=20")
    results = run(outputs, *options)
    dial = results["dial"]
    assert dial["images"] == 500
    assert dial["advised"] == results["scale"] == results["choices"]["scale"]["value"]
    for scale, split in ((0, "val_base"), (results["scale"], "val")):
        place = dial["scales"].index(scale)
        for key in ("errors", "errors_of_target"):
            assert dial[key][place] == results[split][key]
    harmful = run(outputs, *options, "optimizer.lr=0.1")
    assert harmful["scale"] == 0
    assert evaluated(outputs)["test"]["broken"] == harmful["test"]["broken"] == 0


def test_a_trial_leaves_nothing_that_other_commands_take(outputs):
    """Nor does one batch have to be right about more than one class."""
    before = bases(outputs)
    for stage in ("lora", "pretrain"):
        results = run(
            outputs, f"stage={stage}", "digit=9", "+trainer.fast_dev_run=true", "optimizer.lr=1e3"
        )
        assert (results["steps"], results["adapter"]) == (1, None)
    assert not list(outputs.rglob("adapter"))
    assert bases(outputs) == before


def test_a_folder_holds_one_run(outputs, tmp_path):
    """Also from Python; nor is the user's base replaced that lies where a checkpoint would."""
    command, options = Run(tmp_path / "run"), (*QUICK, f"paths.outputs={outputs}")
    train(composed("train", *NINES, *options), command)
    mine = tmp_path / "mine" / "checkpoints" / "last.ckpt"
    mine.parent.mkdir(parents=True)
    mine.write_bytes((outputs / "base" / "mnist.ckpt").read_bytes())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"^hydra\.run\.dir=.*: has a results\.json already; ex"):
        train(composed("train", "stage=lora", "digit=3", *options), command)
    with pytest.raises(UserError, match=r"^resume=.*: expected .*last.ckpt, to go on"):
        train(composed("train", *NINES, *options, f"resume={command.folder}"))
    with pytest.raises(UserError, match=r"^hydra\.run\.dir=.*: has a checkpoints already; expe"):
        train(composed("train", *NINES, *QUICK, f"base_ckpt={mine}"), Run(tmp_path / "mine"))
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_a_base_that_was_trained_on_another_split_is_told(tmp_path):
    run(tmp_path, "stage=pretrain", "trainer.max_steps=60", "batches.batch_size=50")
    with logged("lora_mnist.settings") as log:
        run(tmp_path, *NINES)
    assert "the base was trained" not in log.getvalue()
    with logged("lora_mnist.settings") as log:
        run(tmp_path, *NINES, "data.val_size=600")
    assert "data.val_size=600: the base was trained with 500 on these images" in log.getvalue()


def test_a_network_that_changes_its_buffers_is_refused_before_training(outputs, tmp_path):
    base = torch.load(outputs / "base" / "mnist.ckpt", weights_only=True)["state_dict"]
    torch.save({**base, "calls": torch.zeros(())}, tmp_path / "counting.pt")
    counting = ("net._target_=helpers.nets.Counting", f"base_ckpt={tmp_path}/counting.pt")
    with pytest.raises(UserError, match=r"^net\._target_=helpers\.nets\.Counting: .*; calls has"):
        run(outputs, *NINES, *counting)
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
    assert results["choices"]["target"]["value"] == named["choices"].pop("target")["value"]
    assert results["choices"].pop("target")["images"] == 500
    assert without(named, "seconds") == without(results, "seconds")
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
    ours = torch.load(tmp_path / "base" / "mnist.ckpt", weights_only=True)["state_dict"]
    assert changed_tensors(net.state_dict(), ours) == []
    assert base_state_dict(net).keys() == ours.keys()


def test_a_repair_needs_validation_images_unless_numbers_are_given(outputs):
    options = ("experiment=repair", "data.val_size=0")
    with pytest.raises(
        UserError, match=r"^target=weakest, optimizer\.lr=auto, lora\.scale=auto: e"
    ):
        run(outputs, *options, "target=weakest")
    assert run(outputs, *options, "target=9", "optimizer.lr=0.001", "lora.scale=1")["dial"] is None


def test_a_share_of_the_images_is_one_batch_at_least(outputs):
    """Of 500 test images, and of 500 for validation, which one batch takes."""
    shares = ("+trainer.limit_test_batches=0.05", "+trainer.limit_val_batches=0.1")
    results = run(outputs, *NINES, *shares, "data.eval_batch_size=100")
    for split in ("val", "test"):
        assert sum(results[split]["images_per_class"]) == 100
    results = run(outputs, *NINES, *shares)
    for split in ("val", "test"):
        assert sum(results[split]["images_per_class"]) == 500


def test_a_learning_rate_that_does_no_harm(outputs, caplog):
    """Nothing of its trial stays, neither weights nor random numbers drawn."""
    options = (
        "stage=lora",
        "digit=4",
        "batches.replay=20",
        "lora.dropout=0.2",
        "lora.init_std=0.3",
    )
    auto = run(outputs, *options, "optimizer.lr=auto")
    weights = adapter_of(newest(outputs))
    again = run(outputs, *options, f"optimizer.lr={rate_of(auto)}")
    for key in ("val", "test", "dial"):
        assert auto[key] == again[key]
    for name, tensor in adapter_of(newest(outputs)).items():
        assert torch.equal(tensor, weights[name])
    assert rate_of(auto) == 0.003  # 350 images
    more = run(outputs, *options, "digit=[4,5]", "optimizer.lr=auto")
    assert rate_of(more) == 0.001  # 670
    steep = run(outputs, *options[:-1], "lora.alpha=1000", "optimizer.lr=auto")
    assert rate_of(steep) < rate_of(auto)
    with pytest.raises(TrainingError, match="expected another learning rate"):
        run(outputs, *options[:2], "lora.alpha=1e6", "optimizer.lr=auto")
    assert "optimizer.lr=auto: each of 0.003, " in caplog.text
