import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from composed import QUICK, SMALL, composed, logged, small_base
from helpers.commands import only_run, read_results
from omegaconf import OmegaConf

from lora_mnist import MLP, add_lora, save_adapter
from lora_mnist.errors import UserError
from lora_mnist.evaluate import evaluate
from lora_mnist.lora import WEIGHTS_NAME
from lora_mnist.train import train


class Made(NamedTuple):
    """A folder of outputs with a base and an adapter on it, and what training said of it."""

    outputs: Path
    run: Path
    results: dict[str, Any]

    def evaluate(self, tmp_path: Path, *overrides: str) -> dict[str, Any]:
        folder = tmp_path / "run"
        folder.mkdir()
        cfg = composed("eval", *SMALL, f"paths.outputs={self.outputs}", *overrides)
        return evaluate(cfg, folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    outputs = tmp_path_factory.mktemp("made") / "outputs"
    options = (*QUICK, f"paths.outputs={outputs}")
    train(composed("train", "stage=pretrain", *options, "trainer.max_steps=100"))
    results = train(composed("train", "stage=lora", *options, "trainer.max_steps=20"))
    assert results["test"] != results["test_base"]
    return Made(outputs, only_run(outputs, "lora"), results)


def counted(outcome: dict[str, Any]) -> dict[str, Any]:
    """What no class to repair is needed for."""
    return {key: value for key, value in outcome.items() if key != "errors_of_target"}


def test_repeats_the_numbers_of_a_run(cli: Any, made: Made, tmp_path: Path) -> None:
    """Through the command line, the folder given as the run printed it."""
    base = f"base_ckpt={made.outputs}/base/mnist.ckpt"
    done = cli("eval.py", *SMALL, f"adapter={made.run}", base)
    assert done.code == 0, done.err
    folder = only_run(tmp_path / "outputs", "eval")
    found = read_results(folder)
    for key in ("test", "test_base"):
        assert found[key] == counted(made.results[key])
    assert found["base_sha256"] == made.results["base_sha256"]
    before, after = (found[split]["accuracy"] for split in ("test_base", "test"))
    assert f"accuracy: {before:.4f} -> {after:.4f}" in done.out
    assert f"run: {folder}" in done.err
    assert {path.name for path in folder.iterdir()} == {
        *(".hydra", "eval.log", "results.json", "answers.safetensors", "figures", "report.html"),
    }


@pytest.mark.parametrize("adapter", ["{run}", "{run}/adapter", "latest"])
def test_finds_the_adapter_and_its_base(made: Made, tmp_path: Path, adapter: str) -> None:
    found = made.evaluate(tmp_path, f"adapter={adapter.format(run=made.run)}")
    assert found["test"] == counted(made.results["test"])
    assert found["base_sha256"] == made.results["base_sha256"]


def test_without_an_adapter_tests_the_base_alone(made: Made, tmp_path: Path) -> None:
    with logged("lora_mnist.show.tables") as text:
        found = made.evaluate(tmp_path)
    assert found["test"] == counted(made.results["test_base"])
    assert "test_base" not in found
    assert found["adapter"] is None
    assert found["parameters"]["lora"] == 0
    assert "errors on the test images" in text.getvalue()
    assert "repaired" not in text.getvalue()


def test_an_adapter_finds_its_own_base_after_another_was_pretrained(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    options = (*QUICK, f"paths.outputs={outputs}", "trainer.max_steps=20")
    train(composed("train", "stage=pretrain", *options))
    adapted = train(composed("train", "stage=lora", *options))
    other = train(composed("train", "stage=pretrain", *options, "seed=1"))
    for adapter, base in (("latest", adapted), ("null", other)):
        cfg = composed("eval", *SMALL, f"paths.outputs={outputs}", f"adapter={adapter}")
        found = evaluate(cfg)
        assert found["base_sha256"] == base["base_sha256"]
        assert found["test"] == counted(base["test"])


def test_a_run_that_ends_meanwhile_is_not_the_latest(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base that was found would not be its own."""
    outputs = tmp_path / "outputs"
    shutil.copytree(made.outputs, outputs)

    def end_another_run(*_: Any) -> None:
        folder = outputs / "lora" / "9999" / "adapter"
        save_adapter(add_lora(MLP(hidden_sizes=[16])), folder)

    monkeypatch.setattr("lora_mnist.evaluate.require_fit", end_another_run)
    found = evaluate(composed("eval", *SMALL, f"paths.outputs={outputs}", "adapter=latest"))
    assert (outputs / "lora" / "9999").exists()
    assert found["test"] == counted(made.results["test"])
    assert found["adapter"] == f"{outputs}/lora/{made.run.name}"


def test_a_notebook_gets_the_results_back(made: Made, tmp_path: Path) -> None:
    small_base(tmp_path)
    cfg = composed("eval", *SMALL, f"paths.outputs={tmp_path}")
    before = OmegaConf.to_yaml(cfg)
    results = evaluate(cfg)
    assert OmegaConf.to_yaml(cfg) == before
    assert results == read_results(only_run(tmp_path, "eval"))
    assert list(results) == [
        *("stage", "dataset", "seed", "digit", "target", "replay", "classes"),
        *("data_sha256", "mean", "std"),
        *("steps", "parameters"),
        *("test", "base_unchanged", "base_sha256", "adapter", "seconds"),
    ]
    assert results["test"]["accuracy"] > 0.8
    assert torch.is_grad_enabled()


def test_stacks_adapters_and_tests_each(made: Made, tmp_path: Path) -> None:
    several = f"[{made.run},{{path: {made.run}/adapter, scale: -1, name: minus}}]"
    with logged("lora_mnist.show.tables") as text:
        found = made.evaluate(tmp_path, f"adapter={several}", "each=true")
    assert found["test_base"] == counted(made.results["test_base"])
    name = made.run.name
    assert list(found["each"]) == [name, "minus"]
    assert found["each"][name] == counted(made.results["test"])
    assert found["each"]["minus"]["errors"] != found["each"][name]["errors"]
    # Together they cancel, to rounding.
    assert abs(found["test"]["errors"] - found["test_base"]["errors"]) <= 2
    adapter = {"path": f"{made.run}/adapter", "scale": -1, "name": "minus"}
    assert found["adapter"] == [str(made.run), adapter]
    columns = (found["test_base"], *found["each"].values(), found["test"])
    lines = text.getvalue().splitlines()
    table = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    for c, name in enumerate(found["classes"]):
        assert [name, *(str(outcome["errors_per_class"][c]) for outcome in columns)] in table
    assert ["all", *(str(outcome["errors"]) for outcome in columns)] in table


def test_each_tells_no_logger(made: Made, tmp_path: Path) -> None:
    """There ``test`` means all adapters together."""
    several = f"[{made.run},{{path: {made.run}, name: again}}]"
    found = made.evaluate(tmp_path, f"adapter={several}", "each=true", "logger=csv")
    lines = (tmp_path / "run" / "csv" / "metrics.csv").read_text().splitlines()
    accuracy = lines[0].split(",").index("test/accuracy")
    told = {line.split(",")[accuracy] for line in lines[1:]} - {""}
    assert [float(value) for value in told] == [pytest.approx(found["test"]["accuracy"])]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("adapter={tmp}/none",), f"adapter={{tmp}}/none: expected a readable {WEIGHTS_NAME}"),
        (("each=maybe",), "each=maybe: expected true or false"),
        (("+digit=9",), "digit=9: nothing reads this key with stage=eval; expected one of"),
        (("+trainer.limit_test_batches=0",), "trainer.limit_test_batches=0: expected > 0"),
        (("base_ckpt={tmp}/none",), "base_ckpt={tmp}/none: no such file"),
    ],
)
def test_refuses(made: Made, tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    overrides = tuple(override.replace("{tmp}", str(tmp_path)) for override in overrides)
    with pytest.raises(UserError) as caught:
        made.evaluate(tmp_path, *overrides)
    assert str(caught.value).startswith(message.replace("{tmp}", str(tmp_path)))
    assert not list((tmp_path / "run").iterdir())


def test_defines_nothing_that_it_does_not_use() -> None:
    keys = {"stage", "data", "net", "base_name", "base_ckpt", "adapter", "each"}
    cfg = composed("eval")
    assert set(cfg) == {*keys, "allow_other_base", "trainer", "logger", "paths", "sweep", "figures"}
