import re
from pathlib import Path
from typing import Any

import pytest
from composed import composed
from helpers.nets import TinyNet
from torch import nn

from lora_mnist import add_lora
from lora_mnist.classifier.significance import mcnemar
from lora_mnist.data import ImageDataModule
from lora_mnist.data.datamodule import class_numbers
from lora_mnist.disk.results import Clock, collect_results, count_parameters, new_run_folder
from lora_mnist.lora import fingerprint


def data(target: Any = None) -> ImageDataModule:
    module = ImageDataModule("mnist", ["cat", "dog", "owl"], 1, mean=0.5, std=0.25)
    module.targets = [] if target is None else class_numbers(target, module.classes)
    return module


def outcome(*errors: int) -> dict[str, Any]:
    return {"errors": sum(errors), "errors_per_class": list(errors)}


def test_folders_are_named_by_stage_and_time(tmp_path: Path) -> None:
    cfg = composed("train", "stage=lora", f"paths.outputs={tmp_path}/outputs")
    folders = [new_run_folder(cfg) for _ in range(2)]
    assert folders[0] != folders[1]
    for folder in folders:
        assert folder.is_dir()
        assert folder.parent == tmp_path / "outputs" / "lora"
        assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}", folder.name)


@pytest.mark.parametrize(
    ("target", "digit", "name", "expected"),
    [
        (None, None, None, None),
        ("owl", 2, "owl", 30),
        (["owl", 0], [2, 0], ["owl", "cat"], 31),
    ],
)
def test_results_tell_the_errors_on_the_target(
    tiny: TinyNet, target: Any, digit: Any, name: Any, expected: int | None
) -> None:
    cfg = composed("train", "stage=lora", "seed=5", "tags=[wide]", "notes=why")
    outcomes = {"val": outcome(1, 4, 30), "test": outcome(1, 4, 30)}
    results = collect_results(cfg, data(target), tiny, outcomes, Clock(), steps=7)
    assert " ".join(results) == (
        "stage dataset tags notes seed digit targets target replay target_weight classes "
        "data_sha256 mean "
        "std val_from steps best parameters val test base_unchanged base_sha256 adapter seconds"
    )
    assert [results[k] for k in ("stage", "dataset", "seed", "steps")] == ["lora", "mnist", 5, 7]
    assert (results["tags"], results["notes"], results["best"]) == (["wide"], "why", None)
    assert (results["digit"], results["target"]) == (digit, name)
    assert results["base_sha256"] == fingerprint(tiny.state_dict())
    known = collect_results(cfg, data(target), tiny, outcomes, Clock(), base_sha256="ab")
    assert known["base_sha256"] == "ab"
    for split in ("val", "test"):
        assert results[split].pop("errors_of_target", None) == expected
        assert results[split] == outcomes[split] == outcome(1, 4, 30)


def test_results_tell_what_chance_explains(tiny: TinyNet) -> None:
    repair = {"repaired": 14, "broken": 8}
    repair |= {"repaired_per_class": [1, 2, 11], "broken_per_class": [4, 2, 2]}
    outcomes = {"test": outcome(1, 4, 30) | repair, "test_base": outcome(1, 4, 39)}
    cfg = composed("train", "stage=lora")
    found = collect_results(cfg, data(2), tiny, outcomes, Clock())
    p_values = mcnemar(11, 2), mcnemar(3, 6)
    assert (found["test"]["p_value_of_target"], found["test"]["p_value_elsewhere"]) == p_values
    assert not [key for key in found["test_base"] if key.startswith("p_value")]


def test_parameters_are_counted(tiny: TinyNet) -> None:
    tiny.register_buffer("mean", nn.Parameter().new_zeros(9))
    base, lora = 6 * 5 + 5 + 5 * 3 + 3, 2 * (6 + 5 + 5 + 3)
    count = count_parameters(tiny)
    assert (count["base"], count["lora"], count["trainable"]) == (base, 0, base)
    count = count_parameters(add_lora(tiny, rank=2))
    share = round(100 * lora / base, 3)
    assert count == {"base": base, "lora": lora, "trainable": lora, "increase_percent": share}
    add_lora(tiny, name="second")
    assert count_parameters(tiny)["lora"] == lora + lora // 2
