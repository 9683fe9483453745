"""Testing: a base alone, and with an adapter."""

import pytest
import torch
from composed import SMALL, composed, logged
from helpers.commands import only_run, read_results
from omegaconf import OmegaConf

from lora_mnist.command import Run
from lora_mnist.evaluate import evaluate


def config(outputs, *overrides):
    return composed("eval", *SMALL, f"paths.outputs={outputs}", *overrides)


@pytest.fixture
def trained(made):
    """The results of a repair."""
    return read_results(only_run(made, "lora"))


def test_repeats_the_numbers_of_a_run(cli, made, trained, tmp_path):
    """The folder is given as the run printed it. The class it repairs is known from its run."""
    run, base = only_run(made, "lora"), f"base_ckpt={made}/base/mnist.ckpt"
    done = cli("eval.py", *SMALL, f"adapter={run}", base, "figures=null").ok()
    folder = only_run(tmp_path / "outputs", "eval")
    found = read_results(folder)
    for key in ("test", "test_base", "base_sha256"):
        assert found[key] == trained[key]
    before, after = (found[split]["accuracy"] for split in ("test_base", "test"))
    assert f"accuracy: {before:.4f} -> {after:.4f}" in done.out
    assert f"run: {folder}" in done.err
    assert {path.name for path in folder.iterdir()} == {
        *(".hydra", "eval.log", "results.json", "predictions.csv"),
        *("figures", "report.html"),
    }


@pytest.mark.parametrize("scale", ["0", "auto"])
def test_as_much_of_the_adapter_as_is_asked_for(made, trained, tmp_path, scale):
    found = evaluate(config(made, "adapter=latest", f"scale={scale}"), Run(tmp_path))
    chosen = trained["dial"]["advised"] if scale == "auto" else float(scale)
    assert found["scale"] == chosen
    assert found["targets"] == [9]  # the adapter knows it by name
    assert found["test_base"] == trained["test_base"]
    assert (found["test"]["broken"] == found["test"]["repaired"] == 0) == (chosen == 0)


def test_without_an_adapter_tests_the_base_alone(made, trained):
    """Called as from a notebook."""
    cfg = config(made)
    before = OmegaConf.to_yaml(cfg)
    with logged("lora_mnist.show.log") as text:
        found = evaluate(cfg)
    assert OmegaConf.to_yaml(cfg) == before
    folder = only_run(made, "eval")
    assert found == read_results(folder)
    assert not [*folder.glob("report.html"), *folder.glob("figures")]  # figures=false
    assert torch.is_grad_enabled()
    base = dict(trained["test_base"])
    for key in ("errors_of_target", "errors_elsewhere", "false_calls_of_target"):  # there is none
        del base[key]
    assert found["test"] == base
    assert "test_base" not in found
    assert found["adapter"] is None
    assert found["parameters"]["lora"] == 0
    assert "errors on the test images" in text.getvalue()
