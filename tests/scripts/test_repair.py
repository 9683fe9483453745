"""The study of repairs: what it runs composes, its rule chooses as it says, its table adds up."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import jobs
import pytest
import repair
import repair_search
import repair_table
from hydra.core.override_parser.overrides_parser import OverridesParser

from lora_mnist.sweep.records import Row


@pytest.mark.parametrize("settings", repair.METHODS.values(), ids=repair.METHODS.keys())
def test_a_method_keeps_to_100_steps_of_100_images(settings: jobs.Settings) -> None:
    cfg = jobs.compose_config(jobs.overrides(settings))
    assert cfg["trainer"]["max_steps"] == 100
    assert cfg["data"]["batch_size"] == 10
    assert cfg["data"]["replay"] in (0, 90)
    assert ("lora" in cfg) == (cfg["stage"] == "lora")


def test_full_fine_tuning_is_the_recipe_without_its_adapter() -> None:
    tuned = jobs.compose_config(jobs.overrides(repair.METHODS["full fine-tuning"]))
    recipe = jobs.compose_config(["experiment=repair"])
    for key in ("stage", "trainable"):
        tuned.pop(key)
    for key in ("stage", "lora"):
        recipe.pop(key)
    tuned["optimizer"].pop("lr")
    recipe["optimizer"].pop("lr")
    assert tuned == recipe


@pytest.mark.parametrize("name", ["full fine-tuning", "last layer only", "biases only"])
def test_methods_without_an_adapter_differ_in_what_they_train_and_its_rate(name: str) -> None:
    full, other = (repair.METHODS[n] for n in ("full fine-tuning", name))
    differing = {key for key in full.keys() | other.keys() if full.get(key) != other.get(key)}
    assert differing <= {"trainable", "optimizer.lr"}


@pytest.mark.parametrize("what", repair.SEARCHES.values(), ids=repair.SEARCHES.keys())
def test_every_stage_of_a_search_composes(what: repair_search.Search) -> None:
    assert what.goals.keys() == {"on_class", "all"}
    for number, stage in enumerate(what.stages):
        assert stage.keys() <= what.start.keys()
        last = [f"{key}={values[-1]}" for key, values in what.grid(number, what.first()).items()]
        jobs.compose_config([*jobs.overrides(what.fixed), *last])


@pytest.mark.parametrize("what", repair.SEARCHES.values(), ids=repair.SEARCHES.keys())
def test_hydra_sweeps_the_values_as_they_are_written(what: repair_search.Search) -> None:
    for number in range(len(what.stages)):
        for key, values in what.grid(number, what.first()).items():
            parsed = OverridesParser.create().parse_override(f"{key}={','.join(values)}")
            if len(values) > 1:
                assert list(parsed.sweep_string_iterator()) == values


@pytest.mark.parametrize("name", repair.SEARCHES)
def test_a_search_can_find_what_its_method_says(name: str) -> None:
    what = repair.SEARCHES[name]
    tried = {key: [value] for key, value in what.start.items()}
    for stage in what.stages:
        for key, values in stage.items():
            tried[key] += values
    method = jobs.compose_config(jobs.overrides(repair.METHODS[name]))
    for key in (key for key in tried if "." in key):  # the others choose from a config group
        group, option = key.split(".")
        assert method[group][option] in tried[key], key


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("linear1", "linear1"),
        ("linear3.*", "linear3.*"),
        ("linear[12]", "'linear[12]'"),
        ("conv[0-9]|linear1", "'conv[0-9]|linear1'"),
        ("it's", r"'it\'s'"),
        ("true", "'true'"),
        ("4", "'4'"),
        ("a,b", "'a,b'"),
        ("${lora.rank}", "${lora.rank}"),
        (["linear1", "linear[12]"], "[linear1,'linear[12]']"),
        (None, "null"),
        (False, "false"),
        (0.0005, "0.0005"),
        (64, "64"),
    ],
)
def test_values_survive_hydras_grammar(value: Any, text: str) -> None:
    assert jobs.written(value) == text
    assert OverridesParser.create().parse_override(f"key={text}").value() == value


def test_a_setting_has_a_folder_and_bases_of_its_own() -> None:
    settings = [
        jobs.Setting("mnist", "9", False, [0], [0], 1),
        jobs.Setting("mnist", "9", True, [0], [0], 1),
        jobs.Setting("mnist", "9", True, [1, 2], [0], 2),
        jobs.Setting("fashion_mnist", "weakest", True, [0], [0], 1),
    ]
    assert [setting.name for setting in settings] == [
        *("mnist_9_0", "mnist_9_held_out_0", "mnist_9_held_out_1_2"),
        "fashion_mnist_weakest_held_out_0",
    ]
    assert all(a.base(0) != b.base(0) for a, b in pairwise(settings[:2]))
    assert "launcher=joblib" in settings[2].common
    assert "launcher=joblib" not in settings[1].common


def job(rate: str, base: str, of_class: int, every: int) -> Row:
    """A job on a base with 50 errors on the class and 200 in all."""
    results: dict[str, Any] = {"digit": 9}
    for split, (few, many) in {"val": (of_class, every), "val_base": (50, 200)}.items():
        results |= {f"{split}.errors_of_target": few, f"{split}.errors": many}
    arguments = [f"base_ckpt={base}", f"optimizer.lr={rate}"]
    return Row("folder", "finished", arguments=arguments, results=results)


def test_the_goal_that_is_farther_off_counts() -> None:
    goals = {"on_class": 0.2, "all": 0.5}
    what = repair_search.Search(goals=goals, fixed={}, start={"optimizer.lr": 1}, stages=[])
    rows = [job("1", "a", 10, 150), job("2", "a", 20, 90), job("3", "a", 13, 130)]
    rows += [job("1", "b", 10, 150), job("2", "b", 20, 110), job("3", "b", 11, 110)]
    best, *others = repair_search.ranked(rows, what)
    assert best.settings == {"optimizer.lr": "3"}
    assert best.shares == pytest.approx((0.24, 0.6))
    assert best.distance == pytest.approx(1.2)
    assert [other.distance for other in others] == pytest.approx([1.5, 2.0])


def test_a_stage_starts_from_the_best_candidate_so_far() -> None:
    what = repair_search.Search(
        goals={}, fixed={}, start={"a": 1, "b": "x[1]"}, stages=[{"a": [1, 2]}, {"b": ["y"]}]
    )
    assert what.grid(0, what.first()) == {"a": ["1", "2"], "b": ["'x[1]'"]}
    assert what.grid(1, {"a": "2", "b": "'x[1]'"}) == {"a": ["2"], "b": ["y"]}


def test_a_search_ignores_jobs_of_later_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    # Jobs that an earlier call has left: 3 belongs to the second stage, and is better.
    left = [job("1", "a", 10, 150), job("2", "a", 20, 90), job("3", "a", 10, 100)]
    asked = []

    def sweep(setting: Any, folder: Path, *arguments: str) -> list[Row]:
        asked.append([a for a in arguments if a.startswith("optimizer.lr")])
        return left

    monkeypatch.setattr(repair_search, "sweep", sweep)
    what = repair_search.Search(
        goals={"on_class": 0.2, "all": 0.5},
        fixed={},
        start={"optimizer.lr": 1},
        stages=[{"optimizer.lr": [1, 2]}, {"optimizer.lr": [3]}],
    )
    setting = jobs.Setting("mnist", "9", True, [1], [0], 1)
    candidates = repair_search.run_search(setting, Path("folder"), what)
    assert asked == [["optimizer.lr=1,2"], ["optimizer.lr=3"]]
    assert [c.settings["optimizer.lr"] for c in candidates] == ["3", "1", "2"]


def test_the_picture_and_the_table_of_a_study(tmp_path: Path) -> None:
    rows = [job("1", "a", 10, 150), job("1", "b", 20, 110)]
    for row in rows:
        row.results |= {"parameters.trainable": 7, "seconds.fit": 0.5}
        row.results |= {"val.repaired": 60, "val.broken": 40}
    columns = repair_table.columns
    table = {"base": columns(rows, "val_base"), "method": columns(rows, "val")}
    assert repair_table.markdown(table).splitlines()[2:] == [
        "| base | 50 (100%) | 150 | 200 (100%) | 0 | 0 | 0 | 0.0 |",
        "| method | 15 ± 7 (30%) | 115 ± 35 | 130 ± 28 (65%) | 60 | 40 | 7 | 0.5 |",
    ]
    repair_table.draw(table, tmp_path / "repair.png")
    assert (tmp_path / "repair.png").stat().st_size > 10_000
