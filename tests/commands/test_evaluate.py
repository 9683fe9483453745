"""Testing: a base alone, and with an adapter."""

import pytest
from composed import FEW, QUICK, SMALL, composed, small_base
from helpers.commands import only_run, read_results

from lora_mnist.commands.evaluate import evaluate
from lora_mnist.commands.export import export
from lora_mnist.commands.train import train
from lora_mnist.config.run import Run
from lora_mnist.errors import UserError


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
    chosen = trained["scale_curve"]["advised"]["scale"] if scale == "auto" else float(scale)
    assert (results["point"]["scale"], results["targets"]) == (chosen, [9])
    assert results["test_base"] == trained["test_base"]
    assert (results["test"]["broken"] == results["test"]["repaired"] == 0) == (chosen == 0)


def test_the_validation_images_that_a_run_has_decide_in_it(made, tmp_path):
    few = ("data.eval_batch_size=100", "+trainer.limit_val_batches=1")
    options = (f"paths.outputs={made}", "adapter=latest", "scale=auto")
    results = evaluate(composed("eval", *SMALL, *options, *few), Run(tmp_path))
    assert results["choices"]["point"]["images"] == results["validation_images"] == 100


def test_an_offset_is_there_in_every_command_until_it_is_taken_away(outputs, tmp_path):
    """Scale 0 leaves it, offset 0 leaves the adapter; both at 0 are the base."""
    options = ("stage=lora", "digit=9", "batches.replay=20", "lora.offset=1.5", "lora.scale=0.5")
    small_base(outputs)
    trained = train(composed("train", *QUICK, *options, f"paths.outputs={outputs}"))
    assert trained["point"] == {"scale": 0.5, "offset": 1.5}
    record = ("adapter=latest", f"paths.outputs={outputs}")

    def tested(*command_line):
        return evaluate(composed("eval", *SMALL, *FEW, *record, *command_line))

    assert tested()["test"] == trained["test"]
    half, number = tested("offset=0"), tested("scale=0")
    assert half["point"] == {"scale": 0.5, "offset": 0}
    assert number["point"] == {"scale": 0, "offset": 1.5}
    base = tested("scale=0", "offset=0")
    assert base["test"]["errors_per_class"] == trained["test_base"]["errors_per_class"]
    nines = [each["test"]["errors_of_target"] for each in (trained, half, number, base)]
    assert nines[0] < nines[1] <= nines[3] > nines[2]
    out = tmp_path / "nine.safetensors"
    metadata = export(composed("export", SMALL[0], *FEW, *record, f"out={out}"))
    assert (metadata["scale"], metadata["offset"]) == ("0.5", "1.5")
    for message, command_line in {"offset=auto": "offset=auto", "offset=2": "offset=2"}.items():
        with pytest.raises(UserError, match=f"{message}: expected null, since there is no adapter"):
            evaluate(composed("eval", *SMALL, *FEW, f"paths.outputs={outputs}", command_line))


def test_evaluate_of_the_base_alone_from_a_notebook(made, trained):
    results = evaluate(composed("eval", *SMALL, *FEW, f"paths.outputs={made}"))
    assert results == read_results(only_run(made, "eval"))
    assert results["test"].items() <= trained["test_base"].items()
    assert "test_base" not in results
    assert (results["adapter"], results["parameters"]["lora"]) == (None, 0)
