"""Presets of Lightning's and Hydra's parts: each composes, and those that take seconds run."""

from functools import partial

import pytest
import torch
from composed import FEW, SMALL, composed, evaluated, load_adapter_tensors, run
from helpers.commands import only_run, read_csv, read_results, refused
from helpers.sweeping import TOY, start
from omegaconf import OmegaConf

from lora_mnist.classifier.base import base_name
from lora_mnist.classifier.classifier import Classifier
from lora_mnist.config.keys import resolve_configuration
from lora_mnist.config.make import read_settings
from lora_mnist.config.run import Run
from lora_mnist.training.trainer import make_trainer


def test_lightnings_own_arguments_stand_beside_the_presets_or_in_their_place(tmp_path):
    precision = "_target_: lightning.pytorch.plugins.MixedPrecision, precision: bf16-mixed"
    cfg = composed(
        *("train", "trainer=cpu", "stage=lora", "digit=9", "callbacks=[best,early_stopping,rich]"),
        *("logger=[csv,tensorboard]", "+trainer.logger=false"),
        "+trainer.callbacks=[{_target_: lightning.pytorch.callbacks.Timer}]",
        f"+trainer.plugins=[{{{precision}, device: cpu}}]",
    )
    trainer = make_trainer(resolve_configuration(cfg, Run(tmp_path)), Run(tmp_path))
    names = {type(callback).__name__ for callback in trainer.callbacks}
    assert {"ModelCheckpoint", "EarlyStopping", "RichProgressBar", "Timer"} <= names
    assert type(trainer.precision_plugin).__name__ == "MixedPrecision"
    assert not trainer.loggers


@pytest.mark.parametrize(
    ("preset", "dataset"),
    [("cifar10", "CIFAR100"), ("cifar100", "CIFAR10"), ("mnist", "KMNIST"), ("kmnist", "MNIST")],
)
def test_files_are_named_by_the_data_set_whatever_preset_it_began_with(preset, dataset):
    cfg = composed("train", "stage=pretrain", f"data={preset}", f"data.dataset={dataset}")
    assert base_name(cfg.data, {}) == dataset.lower()
    assert Classifier.new(**read_settings(cfg)).dataset.name == dataset.lower()


@pytest.mark.parametrize("logger", ["mlflow", "wandb"])
@pytest.mark.parametrize("entry", ["train", "eval"])
def test_each_logger_has_what_it_names(entry, logger):
    cfg = composed(entry, f"logger={logger}", "paths.run=here")
    cfg.stage = "eval"
    assert OmegaConf.to_container(cfg.logger, resolve=True)


@pytest.mark.parametrize("logger", ["mlflow", "wandb"])
def test_a_logger_that_is_not_installed_is_answered_with_its_extra(tmp_path, monkeypatch, logger):
    monkeypatch.setattr("lora_mnist.errors.find_spec", lambda _: None)
    cfg = composed("train", "stage=pretrain", f"logger={logger}")
    said = refused(make_trainer, resolve_configuration(cfg, Run(tmp_path)), Run(tmp_path))
    assert said.startswith(f"logger={logger}: ")
    assert said.endswith(f'pip install -e ".[{logger}]"')


@pytest.mark.slow
def test_the_best_weights_of_a_pretraining_are_a_file_for_others(outputs):
    """With this learning rate every step makes it worse, and early stopping ends it."""
    harmful = ("stage=pretrain", "optimizer.lr=0.3", "batches.batch_size=500")
    more = ("callbacks=early_stopping", "trainer.val_check_interval=1", "trainer.max_steps=40")
    results = run(outputs, *harmful, *more)
    assert results["steps"] < 40
    (best,) = only_run(outputs, "pretrain").glob("checkpoints/best.ckpt")
    step = torch.load(best, weights_only=True)["global_step"]
    short = run(outputs, *harmful, f"trainer.max_steps={step}")
    loaded = evaluated(outputs, "null", f"base_ckpt={best}")
    assert loaded["base_sha256"] == short["base_sha256"] != results["base_sha256"]


def test_limit_val_batches_of_zero_means_no_validation(outputs):
    assert "val" not in run(outputs, "stage=lora", "digit=9", "+trainer.limit_val_batches=0")


def test_a_schedule_ends_with_the_training(outputs):
    """The learning rate of each step, over optimizer.lr."""
    options = ("logger=csv", "callbacks=lr_monitor", "callbacks.checkpoint=null")
    options += ("trainer.log_every_n_steps=1", "trainer.max_steps=4", "scheduler=one_cycle")
    run(outputs, "stage=lora", "digit=9", *options)
    (metrics,) = only_run(outputs, "lora").rglob("metrics.csv")
    rates = [float(row["lr-Adam"]) for row in read_csv(metrics) if row["lr-Adam"]]
    expected = [0.04, 0.8117, 0.2831, 0]
    assert [rate / 0.001 for rate in rates] == pytest.approx(expected, abs=1e-3)


@pytest.mark.nightly
def test_a_compiled_network_keeps_its_names(outputs, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    options = ("stage=lora", "digit=9", "trainer.val_check_interval=1")
    compiled, plain = run(outputs, *options, "compile=true"), run(outputs, *options)
    adapters = [load_adapter_tensors(folder) for folder in (outputs / "lora").iterdir()]
    torch.testing.assert_close(*adapters)
    assert compiled["test"]["errors"] == pytest.approx(plain["test"]["errors"], abs=2)
    assert compiled["base_unchanged"]


@pytest.mark.nightly
def test_mlflow_in_sqlite(cli, outputs):
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    options = ("stage=lora", "digit=9", *SMALL[:2], *FEW, "logger=mlflow")
    cli("train.py", "-m", *options, "trainer.max_steps=3", "refit=true").ok()
    sweep = only_run(outputs, "multirun")
    (job,) = sweep.glob("*/results.json")
    results = read_results(job.parent)
    client = mlflow.MlflowClient(f"sqlite:///{outputs}/mlflow.db")
    experiment = client.get_experiment_by_name("lora")
    (logged,) = client.search_runs([experiment.experiment_id])
    assert logged.info.status == "FINISHED"  # no Trainer of several trainings has this logger
    assert logged.data.metrics["test/errors"] == results["test"]["errors"]
    assert logged.data.params["lora/rank"] == "1"
    assert "keep this repair" in logged.data.params["verdict"]


SWEEP = "the extra sweep is not installed"


@pytest.mark.nightly
def test_optuna_searches_in_the_right_direction(cli, tmp_path):
    """A failed trial is skipped; the same seed draws the same trials."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason=SWEEP)
    arguments = ("-m", "sweep=optuna", "x=range(0,3)", "y=interval(1,9)")
    drawn = []
    for name in ("a", "b"):
        sweep = tmp_path / name
        done = cli(TOY, *arguments, "hydra.sweeper.n_trials=5", f"hydra.sweep.dir={sweep}")
        assert "best: python" in done.out
        rows = read_csv(sweep / "summary.csv")
        drawn.append([(row["x"], row["y"]) for row in rows])
        accuracies = [float(row["val.accuracy"]) for row in rows if not row["error"]]
        results = OmegaConf.load(sweep / "optimization_results.yaml")
        assert results.best_value == max(accuracies)
    assert drawn[0] == drawn[1]


@pytest.mark.nightly
def test_jobs_run_side_by_side(tmp_path, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason=SWEEP)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    joblib = ("launcher=joblib", "hydra.launcher.n_jobs=2")
    process = start(tmp_path, "-m", "x=0,1,2", "pause=0.3", *joblib)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 1, out + err
    sweep = only_run(tmp_path / "outputs", "multirun")
    assert err.splitlines()[-1] == f"failed: x=0 in {sweep}/0: x=0: expected an integer >= 1"
    assert [row["x"] for row in read_csv(sweep / "summary.csv")] == ["2", "1", "0"]
    workers = [read_results(path.parent)["worker"] for path in sweep.glob("*/results.json")]
    assert process.pid not in {worker["process"] for worker in workers}
    assert {worker["threads"] for worker in workers} == {"1"}


def test_a_recipe_takes_another_loss_and_another_start(tmp_path):
    """The file chooses groups and sets their keys; the command line overrides it."""
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "own.yaml").write_text("_target_: my_loss.Loss")
    chosen = (f"hydra.searchpath=[file://{tmp_path}]", "loss=own", "lora=kaiming")
    cfg = composed("train", "experiment=repair", *chosen)
    assert cfg.loss == {"_target_": "my_loss.Loss"}
    assert (cfg.lora.init, cfg.lora.rank) == ("kaiming", "auto")
