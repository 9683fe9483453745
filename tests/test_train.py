"""Runs of every stage: the network small and the steps few, but the images real."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from composed import QUICK, SMALL, composed, few_images, logged, small_base
from helpers.commands import ROOT, only_run, read_results
from omegaconf import OmegaConf
from safetensors.torch import load_file
from source_notebook import RichBoyNet, fit, load, loader
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lora_mnist.train
from lora_mnist import MLP, load_adapter
from lora_mnist.cache import Cache
from lora_mnist.classifier.module import ClassifierModule
from lora_mnist.data import ImageDataModule, load_images
from lora_mnist.disk.predictions import read_answers
from lora_mnist.errors import TrainingError, UserError
from lora_mnist.evaluate import evaluate
from lora_mnist.lora import WEIGHTS_NAME, changed_tensors, fingerprint
from lora_mnist.train import find_weakest, train


@pytest.fixture(autouse=True)
def fresh_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test found out is news to the next."""
    monkeypatch.setattr(lora_mnist.train, "_draw_weights", Cache(limit=1))
    monkeypatch.setattr(lora_mnist.train, "_base_answers", Cache(limit=4))


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """A folder of outputs with a base."""
    small_base(tmp_path / "outputs")
    return tmp_path / "outputs"


def run(outputs: Path, *overrides: str) -> dict[str, Any]:
    """A quick training; its folder is the newest of ``outputs``."""
    return train(composed("train", *QUICK, f"paths.outputs={outputs}", *overrides))


def newest(outputs: Path, stage: str = "lora") -> Path:
    return max((outputs / stage).iterdir())


def adapter_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / WEIGHTS_NAME)


def without_times(results: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in results.items() if key != "seconds"}


# --- what a run leaves ---------------------------------------------------------------------------


KEYS = [
    *("stage", "dataset", "seed", "digit", "target", "replay", "classes"),
    *("data_sha256", "mean", "std"),
    *("steps", "parameters"),
    *("val", "test", "base_unchanged", "base_sha256", "adapter", "seconds"),
]


class Made(NamedTuple):
    """The folders of a base and of a repair on it."""

    outputs: Path
    pretrain: Path
    lora: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    outputs = tmp_path_factory.mktemp("made")
    options = (*SMALL, f"paths.outputs={outputs}", "trainer.max_steps=30", "data.batch_size=50")
    train(composed("train", "stage=pretrain", *options, "figures=false"))
    train(composed("train", "stage=lora", *options))
    return Made(outputs, only_run(outputs, "pretrain"), only_run(outputs, "lora"))


def without_target(outcome: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in outcome.items() if key != "errors_of_target"}


def test_pretraining_leaves_a_base(made: Made) -> None:
    results = read_results(made.pretrain)
    assert list(results) == KEYS
    assert (results["stage"], results["steps"], results["digit"]) == ("pretrain", 30, None)
    assert sum(results["test"]["images_per_class"]) == 10_000
    assert sum(results["val"]["images_per_class"]) == 5_000
    state = torch.load(made.outputs / "base" / "mnist.ckpt", weights_only=True)["state_dict"]
    MLP(hidden_sizes=[16]).load_state_dict(state)
    assert fingerprint(state) == results["base_sha256"]
    assert (made.pretrain / "checkpoints" / "last.ckpt").is_file()


def test_a_repair_leaves_an_adapter_and_a_proof(made: Made) -> None:
    results = read_results(made.lora)
    pretrained = read_results(made.pretrain)
    assert list(results) == [*KEYS[:-6], "val", "val_base", "test", "test_base", *KEYS[-4:]]
    assert without_target(results["test_base"]) == pretrained["test"]
    assert without_target(results["val_base"]) == pretrained["val"]
    assert results["base_sha256"] == pretrained["base_sha256"]
    assert results["base_unchanged"] is True
    assert results["digit"] == 9
    for split in ("val", "val_base", "test", "test_base"):
        assert results[split]["errors_of_target"] == results[split]["errors_per_class"][9]
    assert results["test"]["errors_of_target"] < results["test_base"]["errors_of_target"]
    net = MLP(hidden_sizes=[16])
    state = torch.load(made.outputs / "base" / "mnist.ckpt", weights_only=True)["state_dict"]
    net.load_state_dict(state)
    load_adapter(net, made.lora / results["adapter"])


def scalars(folder: Path) -> dict[str, list[float]]:
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [e.value for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_shows_curves(made: Made) -> None:
    results, values = read_results(made.lora), scalars(made.lora / "digit=9,rank=1")
    assert len(values["train/loss"]) == 3
    for split in ("val", "test"):
        for what in ("repaired", "broken", "accuracy", "errors_of_target"):
            assert values[f"{split}/{what}"][-1] == pytest.approx(results[split][what])
    nines = [results["val"][f"{what}_per_class"][9] for what in ("errors", "images")]
    last = values["val/accuracy_per_class/9"][-1]
    assert last == pytest.approx(1 - nines[0] / nines[1])
    assert len(values["val/accuracy"]) == 6  # the base, and every seventh of 30 steps, and the end
    assert len(values["test/accuracy"]) == 1
    assert "val/accuracy_per_class/0" in scalars(made.pretrain)


def test_a_run_can_be_drawn_again(made: Made) -> None:
    """The answers that are kept are those that were counted."""
    results, answers = read_results(made.lora), read_answers(made.lora)
    assert answers is not None
    for kind, mask in answers.kinds().items():
        assert mask.sum() == results["test"][kind]
    for split, side in {"test": "adapted", "test_base": "base"}.items():
        confusion = answers.confusion(side, 10)
        errors = confusion.sum(axis=1) - confusion.diagonal()
        assert errors.tolist() == results[split]["errors_per_class"]
    assert read_answers(made.pretrain) is not None
    assert (made.lora / "report.html").is_file()
    assert not (made.pretrain / "report.html").exists()  # figures=false


@pytest.mark.slow
def test_both_stages_in_full_size(base_ckpt: Path, lora_run: Path) -> None:
    """The two commands of the README, each in a process of its own, with fewer steps."""
    pretrained = read_results(base_ckpt.parent / "pretrain")
    assert pretrained["parameters"]["trainable"] == 2_807_010
    assert pretrained["test"]["accuracy"] > 0.8
    assert base_ckpt.stat().st_size < 12e6
    own = f"mnist-{pretrained['base_sha256'][:12]}.ckpt"
    assert (base_ckpt.parent / "outputs" / "base" / own).read_bytes() == base_ckpt.read_bytes()
    results = read_results(lora_run)
    assert without_target(results["test_base"]) == pretrained["test"]
    assert results["parameters"] == {
        **{"base": 2_807_010, "lora": 6_794, "trainable": 6_794, "increase_percent": 0.242}
    }
    assert results["test"]["errors_of_target"] < results["test_base"]["errors_of_target"]
    assert {path.name for path in lora_run.iterdir()} >= {
        *(".hydra", "train.log", "results.json", "checkpoints", "adapter"),
    }
    assert (lora_run / "checkpoints" / "last.ckpt").stat().st_size < 150_000
    assert (lora_run / "adapter" / WEIGHTS_NAME).stat().st_size < 30_000


@pytest.mark.slow
def test_interrupted_pretraining_leaves_the_base_alone(tmp_path: Path) -> None:
    base = tmp_path / "base.ckpt"
    base.write_bytes(b"the old base")
    arguments = ["train.py", "stage=pretrain", f"base_ckpt={base}", f"hydra.run.dir={tmp_path}/run"]
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stderr=subprocess.PIPE)
    for line in process.stderr:
        if b"training a base on" in line:
            break
    process.kill()
    process.wait(timeout=60)
    assert base.read_bytes() == b"the old base"
    assert not (tmp_path / "run" / "results.json").exists()


# --- a function like any other -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "overrides"),
    [
        ("pretrain", ()),
        ("lora", ("digit=weakest",)),
        (
            "lora",
            ("digit=[3,5]", "data.replay=10", "loss=distill", "data.hardness=0.5", *few_images()),
        ),
        ("finetune", ()),
    ],
)
def test_a_notebook_gets_the_results_back(
    outputs: Path, stage: str, overrides: tuple[str, ...]
) -> None:
    cfg = composed("train", f"stage={stage}", *QUICK, f"paths.outputs={outputs}", *overrides)
    before = OmegaConf.to_yaml(cfg)
    results = train(cfg)
    assert OmegaConf.to_yaml(cfg) == before
    assert results == read_results(only_run(outputs, stage))
    assert results["stage"] == stage
    assert results["steps"] == 3
    assert torch.is_grad_enabled()


def test_the_folder_may_be_given(outputs: Path, tmp_path: Path) -> None:
    cfg = composed("train", "stage=lora", *QUICK, f"paths.outputs={outputs}")
    folder = tmp_path / "run"
    folder.mkdir()
    results = train(cfg, folder)
    assert read_results(folder) == results
    assert {path.name for path in folder.iterdir()} == {
        *("adapter", "answers.safetensors", "results.json"),
    }
    assert {path.name for path in outputs.iterdir()} == {"base"}


def test_same_seed_same_numbers(outputs: Path) -> None:
    a, b, c = (run(outputs, "stage=lora", f"seed={seed}") for seed in (0, 0, 1))
    assert without_times(a) == without_times(b)
    assert a["test"] != c["test"]
    assert a["test_base"] == c["test_base"]
    first, second, third = (adapter_of(folder) for folder in sorted((outputs / "lora").iterdir()))
    assert changed_tensors(first, second) == []
    assert changed_tensors(first, third)


@pytest.mark.parametrize("stage", ["nope", "eval", "null"])
def test_refuses_other_stages(tmp_path: Path, stage: str) -> None:
    cfg = composed("train", "stage=pretrain", *QUICK, f"paths.outputs={tmp_path}")
    cfg.stage = None if stage == "null" else stage
    with pytest.raises(UserError, match="^stage=.*: expected one of pretrain, lora, finetune"):
        train(cfg)
    cfg.stage = "???"
    with pytest.raises(UserError, match="^stage.*: expected one of pretrain, lora, finetune"):
        train(cfg)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", ["-1", "4294967296", "abc", "null", "true"])
def test_refuses_seeds(tmp_path: Path, seed: str) -> None:
    with pytest.raises(UserError, match="^seed=.*: expected an integer from 0 to 4294967295"):
        run(tmp_path, "stage=pretrain", f"seed={seed}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("stage=lora", "+adapter=x"), "adapter=x: nothing reads this key with stage=lora; exp"),
        (("stage=lora", "+trainable=x"), "trainable=x: nothing reads this key with stage=lora"),
        (("stage=pretrain", "+lora.rank=4"), "lora=...: nothing reads this key with stage=pretra"),
        (("stage=finetune", "+lora.rank=4"), "lora=...: nothing reads this key with stage=finetu"),
        (("stage=pretrain", "+nope=1"), "nope=1: nothing reads this key with stage=pretrain"),
    ],
)
def test_refuses_keys_that_nothing_reads(
    outputs: Path, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        run(outputs, *overrides)
    assert str(caught.value).startswith(message)


# --- pretraining ---------------------------------------------------------------------------------


def bases(outputs: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((outputs / "base").iterdir())}


def test_every_base_is_kept(tmp_path: Path) -> None:
    """The second pretraining replaces the current base, and the first one's own file stays."""
    options = ("stage=pretrain", "trainer.max_steps=20")
    first, second, again = (run(tmp_path, *options, f"seed={n}") for n in (0, 1, 0))
    names = [f"mnist-{results['base_sha256'][:12]}.ckpt" for results in (first, second)]
    assert first["base_sha256"] == again["base_sha256"] != second["base_sha256"]
    found = bases(tmp_path)
    assert sorted(found) == sorted([*names, "mnist.ckpt"])
    assert found["mnist.ckpt"] == found[names[0]] != found[names[1]]
    state = torch.load(tmp_path / "base" / names[1], weights_only=True)["state_dict"]
    assert fingerprint(state) == second["base_sha256"]


def test_a_base_elsewhere_has_its_own_file_too(outputs: Path, tmp_path: Path) -> None:
    before = bases(outputs)
    results = run(outputs, "stage=pretrain", f"base_ckpt={tmp_path}/new/mine.ckpt")
    own = f"mnist-{results['base_sha256'][:12]}.ckpt"
    assert bases(outputs) == {**before, own: (tmp_path / "new" / "mine.ckpt").read_bytes()}


@pytest.mark.parametrize("fails", ["collect_results", "write_results", "print_results"])
def test_the_base_is_published_last(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    before = bases(outputs)
    monkeypatch.setattr(lora_mnist.train, fails, fail)
    with pytest.raises(OSError, match="no space left"):
        run(outputs, "stage=pretrain")
    assert bases(outputs) == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("optimizer.lr=1e30",),
            "optimizer.lr: the loss is nan at step 2, at a learning rate of 1e+30",
        ),
        (("trainer.max_steps=0",), "trainer.max_steps=0 trainer.max_epochs=1: expected at least"),
        (("+trainer.limit_test_batches=0.01",), "trainer: You requested to check 0.01"),
        (("digit=weakest",), "digit=weakest: expected stage=lora, since only a base has a weakest"),
        (
            ("resume=/none",),
            "resume=/none: no run that can be gone on with; expected the folder of",
        ),
    ],
)
def test_a_pretraining_that_failed_leaves_the_base_alone(
    outputs: Path, overrides: tuple[str, ...], message: str
) -> None:
    before = bases(outputs)
    with pytest.raises(UserError) as caught:
        run(outputs, "stage=pretrain", *overrides)
    assert str(caught.value).startswith(message)
    assert bases(outputs) == before


def test_a_base_that_has_learnt_nothing_is_not_published(outputs: Path) -> None:
    before = bases(outputs)
    with pytest.raises(TrainingError) as caught:
        run(outputs, "stage=pretrain", "optimizer.lr=1e6", "trainer.max_steps=10")
    folder = newest(outputs, "pretrain")
    assert re.fullmatch(
        r"optimizer\.lr=1000000\.0: \d+\.\d% of the val images are right, no more than by always "
        rf"answering 1 - one; the base stays in {folder}, and base_ckpt={outputs}/base/mnist.ckpt "
        "is what it was; expected another learning rate",
        str(caught.value).replace("7 - seven", "1 - one"),
    )
    assert caught.value.exit_code == 1
    assert bases(outputs) == before
    results = read_results(folder)
    (kept,) = folder.glob("mnist-*.ckpt")
    assert fingerprint(torch.load(kept, weights_only=True)["state_dict"]) == results["base_sha256"]


def test_a_base_for_some_classes_need_not_know_the_others(outputs: Path) -> None:
    results = run(outputs, "stage=pretrain", "digit=9", "trainer.max_steps=10")
    assert results["test"]["accuracy"] < 0.12
    assert f"mnist-{results['base_sha256'][:12]}.ckpt" in bases(outputs)


def test_an_adapter_that_answers_always_the_same_is_told(outputs: Path) -> None:
    with pytest.raises(TrainingError, match=r"^optimizer\.lr=1000000\.0: .* fewer than with the b"):
        run(outputs, "stage=lora", "optimizer.lr=1e6", "trainer.max_steps=10")
    assert read_results(newest(outputs))["base_unchanged"] is True


@pytest.mark.parametrize("stage", ["pretrain", "lora"])
def test_a_loss_that_is_not_finite_ends_training_at_that_step(outputs: Path, stage: str) -> None:
    options = ("callbacks=default", "callbacks.checkpoint.every_steps=1", "optimizer.lr=1e25")
    options = (*options, "trainer.max_steps=30")
    message = (
        r"^optimizer\.lr: the loss is (nan|inf) at step (\d+), at a learning rate of 1e\+25; exp"
    )
    cfg = composed("train", f"stage={stage}", *SMALL, "logger=tensorboard", *options)
    cfg.paths.outputs = str(outputs)
    with pytest.raises(TrainingError, match=message) as caught:
        train(cfg)
    step = int(re.match(message, str(caught.value))[2])  # type: ignore[index]
    folder = newest(outputs, stage)
    assert not (folder / "results.json").exists()
    # The last good checkpoint stays: all its weights are finite.
    for path in (folder / "checkpoints").glob("*.ckpt"):
        kept = torch.load(path, weights_only=True)
        assert kept["global_step"] < step
        assert all(tensor.isfinite().all() for tensor in kept["state_dict"].values())


@pytest.mark.parametrize("base", ["null", "/", "/dev/null/base.ckpt"])
def test_a_base_that_could_not_be_written_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str
) -> None:
    monkeypatch.setattr(lora_mnist.train, "build_net", lambda cfg: pytest.fail("too late"))
    with pytest.raises(UserError, match="^base_ckpt=.*: expected a f"):
        run(tmp_path, "stage=pretrain", f"base_ckpt={base}")


def test_fast_dev_run_replaces_no_base(tmp_path: Path) -> None:
    run(tmp_path, "stage=pretrain", "+trainer.fast_dev_run=true")
    assert not (tmp_path / "base").exists()


def test_another_dataset_by_name(tmp_path: Path) -> None:
    """The relatives of MNIST are files of the same form in a folder of their own name."""
    load_images("MNIST", ROOT / "data", train=False)
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (ROOT / "data" / "MNIST" / "raw").glob("*-ubyte"):
        (raw / file.name).symlink_to(file)
    with logged("lora_mnist.show.tables") as text:
        results = run(
            tmp_path, "stage=pretrain", "data=fashion_mnist", f"data.data_dir={tmp_path}/data"
        )
    assert results["dataset"] == "fashion_mnist"
    assert "Ankle boot" in text.getvalue()
    own = f"fashion_mnist-{results['base_sha256'][:12]}.ckpt"
    assert sorted(bases(tmp_path)) == [own, "fashion_mnist.ckpt"]


# --- repairing -----------------------------------------------------------------------------------


def test_the_base_is_proven_unchanged(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with logged("lora_mnist.train") as text:
        assert run(outputs, "stage=lora")["base_unchanged"] is True
    assert "base unchanged: 4 tensors, bit for bit" in text.getvalue()
    honest = lora_mnist.train._fit

    def spoil(cfg: Any, folder: Path, module: ClassifierModule, *more: Any) -> Any:
        trainer = honest(cfg, folder, module, *more)
        module.net.get_parameter("linear1.bias").data[0] += 1e-6
        return trainer

    monkeypatch.setattr(lora_mnist.train, "_fit", spoil)
    with pytest.raises(RuntimeError, match="fine-tuning changed the base: linear1.bias"):
        run(outputs, "stage=lora")
    assert not (newest(outputs) / "adapter").exists()
    assert not (newest(outputs) / "results.json").exists()


@pytest.mark.parametrize("variant", ["lora=rslora", "lora=pissa", "optimizer=loraplus"])
def test_variants_train_and_load_on_the_original_base(outputs: Path, variant: str) -> None:
    options = ("lora.rank=2", "lora.dropout=0.1", "lora.rank_pattern={linear2: 1}")
    trained = run(outputs, "stage=lora", variant, *options)
    assert trained["parameters"]["lora"] == 2 * (784 + 16) + (16 + 10)
    assert trained["base_unchanged"] is True
    assert trained["test"] != trained["test_base"]
    evaluated = evaluate(composed("eval", *SMALL, f"paths.outputs={outputs}", "adapter=latest"))
    assert evaluated["test_base"] == without_target(trained["test_base"])
    assert evaluated["test"]["errors_per_class"] == trained["test"]["errors_per_class"]


@pytest.mark.slow
def test_both_stages_with_convolutions(tmp_path: Path) -> None:
    few = ("net=cnn", "trainer=cpu", "+trainer.limit_test_batches=2", f"paths.outputs={tmp_path}")
    fit = (*few, "logger=none", "+trainer.limit_val_batches=1", "trainer.max_steps=20")
    train(composed("train", "stage=pretrain", *fit, "data.batch_size=50"))
    assert "mnist_cnn.ckpt" in bases(tmp_path)
    assert all(name.startswith("mnist_cnn") for name in bases(tmp_path))
    options = ('lora.target_modules="conv[0-9]|linear1"', "lora.init=kaiming", "lora.rank=2")
    trained = train(composed("train", "stage=lora", *fit, *options))
    sizes = [9 + 16, 16 * 9 + 32, 32 * 49 + 10]
    assert trained["parameters"] == {
        **{"base": 20_490, "lora": 2 * sum(sizes), "trainable": 2 * sum(sizes)},
        "increase_percent": round(200 * sum(sizes) / 20_490, 3),
    }
    assert trained["base_unchanged"] is True
    assert trained["test"] != trained["test_base"]
    evaluated = evaluate(composed("eval", *few, "adapter=latest"))
    assert evaluated["test"] == without_target(trained["test"])
    own = f"mnist_cnn-{trained['base_sha256'][:12]}.ckpt"
    with pytest.raises(UserError, match=f"^base_ckpt={tmp_path}/base/{own}: missing: linear2.weig"):
        evaluate(composed("eval", *few, "net=mlp", "adapter=latest"))


@pytest.mark.parametrize("experiment", ["repair", "repair_private"])
def test_recipes(outputs: Path, experiment: str) -> None:
    with logged("lora_mnist.show.tables") as text:
        results = run(outputs, f"experiment={experiment}", "trainer.max_steps=20", "digit=9")
    assert results["stage"] == "lora"
    assert results["test"]["repaired_per_class"][9] > 0
    repaired, broken = (results["test"][what] for what in ("repaired", "broken"))
    assert f"repaired: {repaired}, broken: {broken}" in text.getvalue()
    assert results["test"]["errors"] - results["test_base"]["errors"] == broken - repaired


def test_an_epoch_where_steps_count_otherwise(outputs: Path) -> None:
    epoch = ("trainer.max_epochs=1", "trainer.max_steps=-1", "data.batch_size=1000")
    assert run(outputs, "stage=lora", *epoch)["steps"] == 6  # 5,454 nines


def test_finetune_trains_the_chosen_parameters(outputs: Path) -> None:
    options = ("trainable=linear2.*", "callbacks=default", "callbacks.checkpoint.every_steps=1")
    cfg = composed(
        *("train", "stage=finetune", *SMALL, "logger=none", "trainer.max_steps=3", *options),
        f"paths.outputs={outputs}",
    )
    base = torch.load(outputs / "base" / "mnist.ckpt", weights_only=True)["state_dict"]
    results = train(cfg)
    assert results["parameters"]["trainable"] == 170
    assert results["base_unchanged"] is False
    assert results["base_sha256"] == fingerprint(base)
    assert results["adapter"] is None
    checkpoint = newest(outputs, "finetune") / "checkpoints" / "last.ckpt"
    after = torch.load(checkpoint, weights_only=True)["state_dict"]
    after = {name.removeprefix("net."): t for name, t in after.items() if name.startswith("net.")}
    assert changed_tensors(base, after) == ["linear2.bias", "linear2.weight"]
    alone = evaluate(composed("eval", *SMALL, f"paths.outputs={outputs}"))
    assert without_target(results["test_base"]) == alone["test"]


def test_weakest_class(outputs: Path) -> None:
    same = ("stage=lora", "loss=distill", "data.replay=9", *few_images())
    with logged("lora_mnist.train") as text:
        results = run(outputs, *same, "digit=weakest")
    errors = results["val_base"]["errors_per_class"]
    assert results["digit"] == errors.index(max(errors))
    assert f"{max(errors)} of the base's {sum(errors)} errors" in text.getvalue()
    found = adapter_of(newest(outputs))
    named = run(outputs, *same, f"digit={results['digit']}")
    assert without_times(named) == without_times(results)
    assert not changed_tensors(found, adapter_of(newest(outputs)))


def test_a_network_with_dropout_and_batch_normalisation(tmp_path: Path) -> None:
    """Whatever is found out about the base, it is the base in eval mode, and leaves no trace."""
    options = ("net=custom", "net._target_=composed.Unsteady", *QUICK[1:], "data.batch_size=50")
    options = (*options, *few_images(), "trainer.max_steps=50", f"paths.outputs={tmp_path}")
    pretrained = train(composed("train", "stage=pretrain", *options))
    more = ("digit=weakest", "data.hardness=0.5", "data.replay=50")
    for stage in ("lora", "finetune"):
        results = train(composed("train", f"stage={stage}", *options, *more))
        errors = pretrained["val"]["errors_per_class"]
        assert results["digit"] == errors.index(max(errors))
        assert without_target(results["test_base"]) == pretrained["test"]
        assert results["base_sha256"] == pretrained["base_sha256"]
        assert results["base_unchanged"] is (stage == "lora")


def test_of_equally_weak_classes_the_first(outputs: Path) -> None:
    cfg = composed("train", "stage=lora", *SMALL, "digit=weakest")
    net = MLP(hidden_sizes=[16])
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    assert find_weakest(cfg, net) == max(range(1, 10), key=validation_images().__getitem__)
    assert torch.equal(torch.get_rng_state(), before)


def validation_images() -> list[int]:
    _, labels = load_images("MNIST", ROOT / "data", train=True)
    counts: list[int] = torch.bincount(labels[-5_000:], minlength=10).tolist()
    return counts


def test_the_weakest_class_takes_validation_images(outputs: Path) -> None:
    with pytest.raises(UserError, match=r"^digit=weakest: expected data.val_size > 0, since the"):
        run(outputs, "stage=lora", "digit=weakest", "data.val_size=0")


# --- what the jobs of a sweep share --------------------------------------------------------------


def test_hardness_changes_what_is_drawn(outputs: Path) -> None:
    """Also in a process that has drawn with another hardness before."""
    found = {}
    options = ("stage=lora", "data.replay=9", *few_images())
    for hardness, seed in ((0.5, 0), (0.8, 0), (0.8, 1)):
        run(outputs, *options, f"data.hardness={hardness}", f"seed={seed}")
        found[hardness, seed] = adapter_of(newest(outputs))
    lora_mnist.train._draw_weights = Cache(limit=1)
    run(outputs, *options, "data.hardness=0.8")
    alone = adapter_of(newest(outputs))
    assert [job for job in found if not changed_tensors(alone, found[job])] == [(0.8, 0)]


def test_images_are_rated_once_for_all_jobs(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rated, rate = [], ImageDataModule.rate
    monkeypatch.setattr(ImageDataModule, "rate", lambda *a: rated.append(a) or rate(*a))
    options = ("stage=lora", "data.replay=9", "data.hardness=0.5", *few_images())
    run(outputs, *options)
    run(outputs, *options, "lora.rank=2", "seed=1", "data.batch_size=20", "data.replay=20")
    assert len(rated) == 1
    run(outputs, *options, "digit=4")
    small_base(outputs, seed=1)
    run(outputs, *options, "digit=4")
    assert len(rated) == 3


def test_a_rating_that_failed_is_made_again(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing half-done is kept: the next job draws as if it were the first."""
    options = ("stage=lora", "data.replay=9", "data.hardness=0.5", *few_images())
    run(outputs, *options)
    alone = adapter_of(newest(outputs))
    lora_mnist.train._draw_weights = Cache(limit=1)
    errors, calls = ImageDataModule._errors, []

    def fail_on_replay(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:  # the target's images are rated, those to replay are not
            raise MemoryError
        return errors(*arguments)

    monkeypatch.setattr(ImageDataModule, "_errors", fail_on_replay)
    with pytest.raises(MemoryError):
        run(outputs, *options)
    run(outputs, *options)
    assert len(calls) == 4
    assert not changed_tensors(alone, adapter_of(newest(outputs)))


def test_the_base_is_asked_once_for_all_jobs(
    outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, base = [], ClassifierModule.base
    monkeypatch.setattr(ClassifierModule, "base", lambda *a: asked.append(a) or base(*a))
    first = run(outputs, "stage=lora")
    batches = len(asked)
    assert batches == 15  # 5 of validation, 10 of the test
    results = run(outputs, "stage=lora", "lora.rank=2", "seed=1", "digit=4", "data.batch_size=20")
    assert without_target(results["test_base"]) == without_target(first["test_base"])
    assert len(asked) == batches
    run(outputs, "stage=lora", "data.eval_batch_size=500")
    assert len(asked) == batches + 30


def test_no_base_answers_for_another(outputs: Path) -> None:
    for seed in (0, 1):
        small_base(outputs, seed)
        alone = evaluate(composed("eval", *SMALL, f"paths.outputs={outputs}"))
        for stage in ("lora", "finetune"):
            results = run(outputs, f"stage={stage}")
            assert without_target(results["test_base"]) == alone["test"]
            assert results["base_sha256"] == alone["base_sha256"]


# --- the notebook --------------------------------------------------------------------------------


def test_notebook_experiment_gives_the_notebooks_own_weights(tmp_path: Path) -> None:
    torch.manual_seed(3)
    batches, net = loader(load(train=True)), RichBoyNet()
    fit(batches, net, limit=10)
    options = ("trainer=cpu", "logger=none", "trainer.max_steps=10", "seed=3")
    limits = ("+trainer.limit_test_batches=1",)
    train(
        composed(
            *("train", "stage=pretrain", "experiment=notebook", *options, *limits),
            f"paths.outputs={tmp_path}",
        )
    )
    ours = torch.load(tmp_path / "base" / "mnist.ckpt", weights_only=True)["state_dict"]
    assert changed_tensors(net.state_dict(), ours) == []


def test_notebook_experiment_composes_its_stages() -> None:
    pretrain = composed("train", "stage=pretrain", "experiment=notebook")
    lora = composed("train", "stage=lora", "experiment=notebook")
    assert (pretrain.trainer.max_epochs, pretrain.trainer.max_steps) == (1, -1)
    assert (lora.trainer.max_epochs, lora.trainer.max_steps) == (-1, 100)
    assert (pretrain.digit, lora.digit) == (None, 9)
    assert pretrain.data.batch_size == lora.data.batch_size == 10
    assert pretrain.data.val_size == lora.data.val_size == 0
    assert lora.lora == {
        **{"rank": 1, "alpha": 1.0, "target_modules": "all", "init": "gaussian", "init_std": 1.0},
        **{"use_rslora": False, "dropout": 0.0, "rank_pattern": None, "alpha_pattern": None},
        "base_dropout": False,
    }
    assert "lora" not in composed("train", "stage=finetune")


def test_an_experiment_sets_its_stage() -> None:
    cfg = composed("train", "experiment=repair_private")
    assert (cfg.stage, cfg.digit) == ("lora", 9)
    assert OmegaConf.is_missing(composed("train"), "stage")
    assert OmegaConf.is_missing(composed("train", "experiment=notebook"), "stage")


def test_mixed_precision_leaves_everything(outputs: Path) -> None:
    """NumPy, which writes the answers, knows no bfloat16."""
    results = run(outputs, "stage=lora", "+trainer.precision=bf16-mixed")
    assert results["base_unchanged"]
    assert (only_run(outputs, "lora") / "answers.safetensors").exists()
