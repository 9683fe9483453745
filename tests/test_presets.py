"""What Lightning's and Hydra's users try first: every preset composes, and the cheap ones run."""

import csv
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import FEW, QUICK, SMALL, composed, small_net
from helpers.commands import ROOT, only_run, read_results
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf
from safetensors.torch import load_file

import lora_mnist.cli  # noqa: F401 the resolvers that the configurations need
from lora_mnist import load_adapter
from lora_mnist.evaluate import evaluate
from lora_mnist.lora import WEIGHTS_NAME
from lora_mnist.train import train

GROUPS = ("callbacks", "logger", "optimizer", "scheduler", "trainer")


def run(outputs: Path, *overrides: str) -> dict[str, Any]:
    stage = () if any(o.startswith("stage=") for o in overrides) else ("stage=lora",)
    options = (*stage, *QUICK, f"paths.outputs={outputs}")
    return train(composed("train", *options, *overrides))


@pytest.mark.parametrize("stage", ["pretrain", "lora"])
def test_every_preset_composes(stage: str) -> None:
    """The first of each group, then the second of each, and so on; trials are run below."""
    presets = []
    for group in GROUPS:
        files = sorted((ROOT / "configs" / group).glob("*.yaml"))
        presets.append([f"{group}={path.stem}" for path in files])
    for number in range(max(map(len, presets))):
        chosen = [names[number % len(names)] for names in presets]
        cfg = composed("train", f"stage={stage}", "paths.run=here", *chosen)
        OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


# --- the best weights ----------------------------------------------------------------------------


@pytest.mark.parametrize("callbacks", ["best", "early_stopping"])
def test_the_best_weights_are_tested_and_saved(outputs: Path, callbacks: str) -> None:
    """With this learning rate every step makes it worse."""
    harmful = ("optimizer.lr=0.03", "trainer.max_steps=20", "trainer.val_check_interval=2")
    results = run(outputs, f"callbacks={callbacks}", *harmful)
    folder = only_run(outputs, "lora")
    assert results["best"] == {
        "monitor": "val/errors",
        "value": results["val"]["errors"],
        "step": 2,
    }
    assert results["steps"] == (20 if callbacks == "best" else 8)
    assert run(outputs, *harmful)["best"] is None
    short = run(outputs, "optimizer.lr=0.03", "trainer.max_steps=2")
    for split in ("val", "test"):
        assert results[split] == short[split]
    options = (*SMALL, *FEW[:1], f"paths.outputs={outputs}")
    found = evaluate(composed("eval", *options, f"adapter={folder}"))
    assert found["test"]["errors_per_class"] == results["test"]["errors_per_class"]


def test_the_best_weights_become_the_base(outputs: Path) -> None:
    options = ("stage=pretrain", "callbacks=best", "optimizer.lr=0.1", "trainer.max_steps=20")
    options = (*options, "trainer.val_check_interval=2")
    results = run(outputs, *options)
    assert results["best"]["value"] == results["val"]["errors"]
    state = torch.load(outputs / "base" / "mnist.ckpt", weights_only=True)["state_dict"]
    kept = only_run(outputs, "pretrain") / "checkpoints" / "best.ckpt"
    best = torch.load(kept, weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, best[f"net.{name}"]) for name, tensor in state.items())


# --- trials --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("debug", "steps"), [("default", 2), ("fdr", 1), ("limit", 2), ("overfit", 2), ("profiler", 2)]
)
def test_trials(cli: Any, tmp_path: Path, debug: str, steps: int) -> None:
    """Nothing is published, and no logger or checkpoint is written."""
    done = cli(
        "train.py",
        "stage=pretrain",
        *SMALL[:1],
        *FEW,
        f"debug={debug}",
        "trainer.max_steps=2",
    )
    assert done.code == 0, done.err
    outputs = tmp_path / "outputs"
    assert [path.name for path in outputs.iterdir()] == ["debug"]
    run = only_run(outputs, "debug")
    assert read_results(run)["steps"] == steps
    assert not [*run.rglob("events.*"), *run.rglob("last.ckpt"), *run.rglob("report.html")]
    assert done.err.count("Profiler Report") == (debug == "profiler")


def test_a_seed_is_drawn_and_named(outputs: Path) -> None:
    cfg = composed("train", "stage=lora", "seed=null", *QUICK, f"paths.outputs={outputs}")
    drawn, other = train(cfg), train(cfg)
    assert cfg.seed is None
    assert drawn["seed"] != other["seed"]
    again = run(outputs, f"seed={drawn['seed']}")
    assert again["test"] == drawn["test"]


def test_a_resumed_run_keeps_its_drawn_seed(cli: Any, outputs: Path) -> None:
    options = ("stage=lora", *SMALL, *FEW, "logger=none", "seed=null")
    assert cli("train.py", *options, "trainer.max_steps=2").code == 0
    seed = read_results(only_run(outputs, "lora"))["seed"]
    done = cli("train.py", *options, "trainer.max_steps=4", "resume=latest")
    assert done.code == 0, done.err
    assert read_results(only_run(outputs, "lora"))["seed"] == seed


# --- schedules, compile, finders -----------------------------------------------------------------


PLATEAU = ("scheduler=plateau", "scheduler.patience=0", "scheduler.mode=max")
STEP_LR = (
    *("+scheduler._target_=torch.optim.lr_scheduler.StepLR", "+scheduler._partial_=true"),
    *("+scheduler.step_size=1", "+scheduler.gamma=0.25", "+scheduler.interval=epoch"),
)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("scheduler=cosine", "scheduler.interval=epoch", "scheduler.T_max=2"), [1, 1, 0.5, 0.5]),
        (STEP_LR, [1, 1, 0.25, 0.25]),
        (PLATEAU, [1, 1, 1, 1, 0.1, 0.1]),
        (("scheduler=one_cycle", "trainer.max_steps=4"), [0.04, 0.8117, 0.2831, 0]),
    ],
)
def test_schedules(outputs: Path, overrides: tuple[str, ...], expected: list[float]) -> None:
    """The learning rate of each step, over optimizer.lr; an epoch has two steps."""
    options = ("logger=csv", "callbacks=lr_monitor", "callbacks.checkpoint=null")
    options = (*options, "data.batch_size=2000", "trainer.log_every_n_steps=1")
    lengths = ("trainer.max_steps=-1", f"trainer.max_epochs={len(expected) // 2}")
    run(outputs, "stage=pretrain", "publish=false", *options, *lengths, *overrides)
    with next(only_run(outputs, "pretrain").rglob("metrics.csv")).open(newline="") as lines:
        rates = [float(row["lr-Adam"]) for row in csv.DictReader(lines) if row["lr-Adam"]]
    assert [rate / 0.001 for rate in rates] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    "finder", [("lr_finder",), ("batch_size_finder", "callbacks.batch_size_finder.max_trials=2")]
)
def test_finders_find_and_training_goes_on(outputs: Path, finder: tuple[str, ...]) -> None:
    preset, *more = finder
    found = run(outputs, f"callbacks={preset}", "callbacks.checkpoint=null", *more)
    assert found["steps"] == 3
    assert found["test"] != run(outputs)["test"]


@pytest.mark.slow
def test_a_compiled_network_keeps_its_names(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    options = ("callbacks=best", "trainer.val_check_interval=1")
    compiled, plain = run(outputs, *options, "compile=true"), run(outputs, *options)
    adapters = [folder / "adapter" for folder in sorted((outputs / "lora").iterdir())]
    tensors = [load_file(folder / WEIGHTS_NAME) for folder in adapters]
    assert tensors[0].keys() == tensors[1].keys()
    for name, tensor in tensors[0].items():
        torch.testing.assert_close(tensor, tensors[1][name])
    assert compiled["test"]["errors"] == pytest.approx(plain["test"]["errors"], abs=2)
    assert compiled["base_unchanged"]
    load_adapter(small_net(outputs), adapters[0])


# --- loggers that are extras ---------------------------------------------------------------------


@pytest.mark.slow
def test_wandb_offline(outputs: Path) -> None:
    pytest.importorskip("wandb")
    run(outputs, "logger=wandb", "tags=[first]", "notes=why")
    (file,) = only_run(outputs, "lora").glob("wandb/offline-run-*/run-*.wandb")
    content = file.read_bytes()
    for text in (b"lora-mnist", b"first", b"why", b"val/repaired", b"nines: ", b"hidden_sizes"):
        assert text in content


@pytest.mark.slow
def test_mlflow_in_sqlite(outputs: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    results = run(outputs, "logger=mlflow", "tags=[first]", "figures=true")
    client = mlflow.MlflowClient(f"sqlite:///{outputs}/mlflow.db")
    experiment = client.get_experiment_by_name("lora")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.data.metrics["test/errors"] == results["test"]["errors"]
    assert found.data.params["lora/rank"] == "1"
    assert found.data.tags["mlflow.note.content"].startswith("nines: ")
    assert "figures/errors.png" in {
        f.path for f in client.list_artifacts(found.info.run_id, "figures")
    }


def test_a_sweeps_runs_are_grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = composed("train", "stage=lora", "logger=[wandb,mlflow]")
    assert (cfg.logger.wandb.group, cfg.logger.mlflow.experiment_name) == (None, "lora")
    hydra = OmegaConf.create({"mode": RunMode.MULTIRUN, "sweep": {"dir": "outputs/multirun/now"}})
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)
    assert (cfg.logger.wandb.group, cfg.logger.mlflow.experiment_name) == ("now", "now")
