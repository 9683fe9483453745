"""Testing: a base alone, and with an adapter."""

import pytest
from composed import FEW, SMALL, composed
from helpers.commands import only_run, read_results

from lora_mnist.commands.evaluate import evaluate
from lora_mnist.config.command import Run


@pytest.fixture
def trained(made):
    """The results of a repair."""
    return read_results(only_run(made, "lora"))


def test_eval_repeats_the_numbers_of_a_run(cli, made, trained, tmp_path):
    """A copy of the folder may have its own name. The class it repairs is known from its run."""
    run, base = only_run(made, "lora"), f"base_ckpt={made}/base/mnist.ckpt"
    done = cli("eval.py", *SMALL, "adapter=adapter", base, here=run).ok()
    folder = only_run(tmp_path / "outputs", "eval")
    results = read_results(folder)
    for key in ("test", "test_base", "base_sha256"):
        assert results[key] == trained[key]
    assert f"-> {trained['test']['accuracy']:.4f}" in done.out
    files = {path.name for path in folder.iterdir()}
    assert files == {".hydra", "eval.log", "results.json", "predictions.csv"}


@pytest.mark.parametrize("scale", ["0", "auto"])
def test_eval_takes_as_much_of_the_adapter_as_is_asked_for(made, trained, tmp_path, scale):
    options = (f"paths.outputs={made}", "adapter=latest", f"scale={scale}")
    results = evaluate(composed("eval", *SMALL, *options), Run(tmp_path))
    chosen = trained["dial"]["advised"] if scale == "auto" else float(scale)
    assert (results["scale"], results["targets"]) == (chosen, [9])
    assert results["test_base"] == trained["test_base"]
    assert (results["test"]["broken"] == results["test"]["repaired"] == 0) == (chosen == 0)


def test_evaluate_of_the_base_alone_from_a_notebook(made, trained):
    results = evaluate(composed("eval", *SMALL, *FEW, f"paths.outputs={made}"))
    assert results == read_results(only_run(made, "eval"))
    assert results["test"].items() <= trained["test_base"].items()
    assert "test_base" not in results
    assert (results["adapter"], results["parameters"]["lora"]) == (None, 0)
