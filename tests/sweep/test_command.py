"""What the command of a sweep asks for, and how it is said again."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from lora_mnist.errors import UserError
from lora_mnist.sweep.command import (
    Column,
    Ranking,
    command_line,
    override,
    read_grid,
    read_ranking,
)

CONFIGS = Path(__file__).parents[2] / "configs"


def ranking(sweeper: dict[str, Any] | None = None, **changes: Any) -> Ranking:
    default = OmegaConf.load(CONFIGS / "sweep" / "default.yaml")
    config = {"sweep": OmegaConf.merge(default, changes), "hydra": {"sweeper": sweeper or {}}}
    return read_ranking(OmegaConf.create(config))


def test_the_default_ranking() -> None:
    found = ranking()
    assert (found.metric, found.mode) == ("val.accuracy", "max")
    assert found.columns[1] == Column("test.accuracy", "test.accuracy", "test_base.accuracy")
    assert found.columns[-1] == Column("seconds", "seconds.total")


@pytest.mark.parametrize(
    "metric",
    [
        *("val.loss", "val.errors_of_target", "val.errors_per_class.3", "val.repaired_per_class.0"),
        *("seconds.fit", "parameters.trainable", None),
    ],
)
def test_what_may_rank(metric: str | None) -> None:
    assert ranking(metric=metric).metric == metric


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "val.acuracy"}, "sweep.metric=val.acuracy: expected one of val.accuracy, val."),
        ({"metric": 3}, "sweep.metric=3: expected one of val.accuracy"),
        ({"metric": "test.accuracy"}, "sweep.metric=test.accuracy: the test set must not choose;"),
        ({"metric": "test_base.loss"}, "sweep.metric=test_base.loss: the test set must not choose"),
        ({"mode": "best"}, "sweep.mode=best: expected max or min"),
        ({"fail_fast": "maybe"}, "sweep.fail_fast=maybe: expected true or false"),
        ({"columns": [{"titel": "a"}]}, "sweep.columns={'titel': 'a'}: expected title and value"),
        ({"columns": [3]}, "sweep.columns=3: expected title and value"),
        ({"columns": [{"title": 1, "value": "a"}]}, "sweep.columns={'title': 1, 'value': 'a'}: ex"),
        ({"columns": 3}, "sweep.columns=3: expected a list, or null"),
        ({"metrics": True}, "sweep.metrics=True: expected a list, or null"),
        ({"start": {"title": [], "suffix": "a"}}, "sweep.start={'title': [], 'suffix': 'a'}: expe"),
        (
            {"metric": None, "sweeper": {"n_trials": 3}},
            "sweep.metric=null: a search needs one; expected one such as val.accuracy",
        ),
    ],
)
def test_what_may_not(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        ranking(**changes)
    assert str(caught.value).startswith(message)


def test_without_patterns_any_metric_may_rank() -> None:
    assert ranking(metrics=[], metric="energy").metric == "energy"


# --- the grid ------------------------------------------------------------------------------------


@pytest.fixture
def _hydra() -> Iterator[None]:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield
    GlobalHydra.instance().clear()


def grid(*overrides: str, **params: Any) -> tuple[list[str], int]:
    config = {"sweeper": {"params": params}, "overrides": {"task": list(overrides)}}
    return read_grid(OmegaConf.create({"hydra": config}))


@pytest.mark.usefixtures("_hydra")
@pytest.mark.parametrize(
    ("overrides", "fixed", "jobs"),
    [
        ((), [], 1),
        (("stage=lora", "lora.rank=1,2", "+a=1,2,3"), ["stage"], 6),
        (("loss=glob(*)",), [], 3),
        (("loss=glob(*,exclude=margin)", "lora=lora"), ["lora"], 2),
        (("loss=glob([m*,d*])",), [], 2),
        (("stage=choice(lora,finetune)",), [], 2),
        (("seed=range(0,10,3)",), [], 4),
        (("seed=shuffle(range(5))", "x=sort(3,2,1)"), [], 15),
        (("x=shuffle(a,b,c)", "y=sort(3,1,reverse=true)"), [], 6),
        (("x='a,b'", 'y="c,d",e', "z='it\\'s'"), ["x", "z"], 2),
        (("x=[1,2],[3]", "y={a:1},{b:2}"), [], 4),
        (("~x", "seed=0,1"), ["x"], 2),
        (("optimizer.lr=interval(0,1)", "seed=0,1"), [], 2),
        (("lr=tag(log,interval(1e-4,1e-2))",), [], 1),
    ],
)
def test_all_of_hydras_grammar(overrides: tuple[str, ...], fixed: list[str], jobs: int) -> None:
    assert grid(*overrides) == (fixed, jobs)


@pytest.mark.usefixtures("_hydra")
def test_the_command_overrides_the_sweepers_own_grid() -> None:
    assert grid("seed=0", seed="0,1", rank="1,2") == (["seed"], 2)


@pytest.mark.usefixtures("_hydra")
@pytest.mark.parametrize("text", ["seed=range(1,1)", "loss=glob(x*)"])
def test_an_empty_grid(text: str) -> None:
    with pytest.raises(UserError) as caught:
        grid(text)
    assert str(caught.value) == f"{text}: an empty grid; expected at least one value"


# --- the command again ---------------------------------------------------------------------------

ARGUMENTS = [
    "-m",
    "stage=lora",
    "lora.target_modules='linear[12]'",
    "images='my pictures/*.png'",
    'x="a,b"',
    "note='say \"$HOME\" `id` \\ it!'",
    "loss=glob(*)",
    "~scheduler",
    "+trainer.fast_dev_run=true",
    "optimizer.lr=tag(log,interval(1e-4,1e-2))",
    "a={b:[1,2]}",
    "",
]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_command_is_ready_to_paste(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    command = command_line("train.py", ARGUMENTS)
    script = f"python() {{ printf '%s\\0' \"$@\"; }}; {command}"
    done = subprocess.run([shell, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\0")[:-1] == ["train.py", *ARGUMENTS]


def test_hydras_quotes_stay_readable() -> None:
    assert command_line("train.py", ["a='linear[12]'", "b=1,2", "c=glob(*)"]) == (
        "python train.py \"a='linear[12]'\" b=1,2 'c=glob(*)'"
    )


@pytest.mark.parametrize(
    "value",
    ["/a/b-c_d.e/2026-01", "/with space", "/a,b=c", "/it's", "/[x]", "/a\\'b\\", "/é", "/~"],
)
def test_a_value_survives_hydras_grammar(value: str) -> None:
    text = override("sweep.resume", value)
    assert OverridesParser.create().parse_override(text).value() == value
    assert ("'" in text) == (value not in ("/a/b-c_d.e/2026-01",))
