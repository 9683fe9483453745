"""Testing: a base alone, with an adapter, with several that stack, each alone."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from composed import FEW, QUICK, SMALL, composed, logged
from helpers.commands import only_run, read_results
from omegaconf import OmegaConf

from lora_mnist.adapters import classes_repaired_by
from lora_mnist.evaluate import evaluate
from lora_mnist.project import Run
from lora_mnist.train import train


class Made(NamedTuple):
    """A folder of outputs with a base and an adapter on it, and what training said of it."""

    outputs: Path
    run: Path
    results: dict[str, Any]

    def config(self, *overrides):
        return composed("eval", *SMALL, *FEW, f"paths.outputs={self.outputs}", *overrides)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("made") / "outputs"
    options = (*QUICK, f"paths.outputs={outputs}")
    train(composed("train", "stage=pretrain", *options, "trainer.max_steps=100"))
    results = train(composed("train", "stage=lora", *options, "trainer.max_steps=20"))
    assert results["test"] != results["test_base"]
    return Made(outputs, only_run(outputs, "lora"), results)


def test_repeats_the_numbers_of_a_run(cli, made, tmp_path):
    """Through the command line, the folder given as the run printed it."""
    base = f"base_ckpt={made.outputs}/base/mnist.ckpt"
    done = cli("eval.py", *SMALL, *FEW, f"adapter={made.run}", base, "figures=null").ok()
    folder = only_run(tmp_path / "outputs", "eval")
    found = read_results(folder)
    for key in ("test", "test_base"):
        assert found[key] == made.results[key]
    assert found["base_sha256"] == made.results["base_sha256"]
    before, after = (found[split]["accuracy"] for split in ("test_base", "test"))
    assert f"accuracy: {before:.4f} -> {after:.4f}" in done.out
    assert f"run: {folder}" in done.err
    assert {path.name for path in folder.iterdir()} == {
        *(".hydra", "eval.log", "results.json", "predictions.safetensors"),
        *("figures", "report.html"),
    }


def test_what_is_required_is_checked_and_all_is_kept(cli, made, tmp_path):
    """The class that the adapter repairs is known from its run."""
    both = "test.errors_of_target < test_base.errors_of_target"
    options = (*SMALL, *FEW, f"adapter={made.run}", f"base_ckpt={made.outputs}/base/mnist.ckpt")
    require = f'require=["test.broken <= 2", "{both}", "test.p_value <= 1"]'
    done = cli("eval.py", *options, require)
    broken = made.results["test"]["broken"]
    assert broken > 2
    line = f"require=test.broken <= 2: {broken} <= 2 does not hold"
    assert (done.code, done.err.splitlines()[-1]) == (1, line)
    folder = only_run(tmp_path / "outputs", "eval")
    assert read_results(folder)["test"] == made.results["test"]
    assert not [*folder.glob("report.html"), *folder.glob("figures")]  # figures=false
    assert f"run: {folder}" in done.err


def test_an_adapter_knows_its_classes_by_name(made):
    adapter = made.run / "adapter"
    assert classes_repaired_by(adapter, list("0123456789")) == [9]
    assert classes_repaired_by(adapter, list("9876543210")) == [0]
    assert classes_repaired_by(adapter, ["cat", "dog"]) == []


@pytest.mark.parametrize("scale", ["0", "0.5", "auto"])
def test_as_much_of_the_adapter_as_is_asked_for(made, tmp_path, scale):
    found = evaluate(made.config("adapter=latest", f"scale={scale}"), Run(tmp_path))
    chosen = made.results["dial"]["advised"] if scale == "auto" else float(scale)
    assert found["scale"] == chosen
    assert found["test_base"] == made.results["test_base"]
    assert (found["test"]["broken"] == found["test"]["repaired"] == 0) == (chosen == 0)


def test_without_an_adapter_tests_the_base_alone(made):
    """Called as from a notebook."""
    cfg = made.config()
    before = OmegaConf.to_yaml(cfg)
    with logged("lora_mnist.show.tables") as text:
        found = evaluate(cfg)
    assert OmegaConf.to_yaml(cfg) == before
    assert found == read_results(only_run(made.outputs, "eval"))
    assert torch.is_grad_enabled()
    base = dict(made.results["test_base"])
    del base["errors_of_target"]  # there is none
    assert found["test"] == base
    assert "test_base" not in found
    assert found["adapter"] is None
    assert found["parameters"]["lora"] == 0
    assert "errors on the test images" in text.getvalue()
    assert "repaired" not in text.getvalue()
