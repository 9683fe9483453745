"""A run that was cut short ends as the one that was not: bit by bit, to the last logged value."""

import csv
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import SMALL, composed, few_images, small_base
from helpers.commands import ROOT, read_results, run_process
from helpers.crash import CRASH, Crashed, differences, left_by
from hydra.core.hydra_config import HydraConfig
from tensorboard.summary.writer import event_file_writer

import lora_mnist.train
from lora_mnist.disk.checkpoint import read_checkpoint
from lora_mnist.errors import UserError
from lora_mnist.lora import WEIGHTS_NAME
from lora_mnist.train import train
from lora_mnist.weights_file import limits

Go = Callable[..., Path]

#: A checkpoint every seven steps, at no round number of anything.
LORA = ("stage=lora", "trainer.max_steps=50", "callbacks.checkpoint.every_steps=7")
REPLAY = (
    *("data.replay=9", "data.hardness=0.5", "lora.dropout=0.2", "scheduler=linear"),
    *("callbacks=averaging", "augment=shift", "trainer.log_every_n_steps=4"),
)
TWO_EPOCHS = (
    *("stage=pretrain", "data.batch_size=120", "trainer.max_epochs=2"),  # 30 steps each, the last
    *("callbacks.checkpoint.every_steps=7", "trainer.log_every_n_steps=3"),  # of 20 images
)


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Go:
    """``go("run", *overrides)`` trains in tmp_path/run; it may ``crash`` before a step."""
    base = small_base(tmp_path / "outputs")
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # as without hydra.main
    # Readers sort event files by name, in which files are counted: .9 comes behind .10.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(100))

    def run(name: str, *overrides: str, crash: int | None = None, resume: bool = False) -> Path:
        folder = tmp_path / name
        common = [*SMALL, *few_images(), CRASH, f"paths.outputs={tmp_path}/outputs"]
        if "stage=pretrain" in overrides:
            common += [f"base_ckpt={folder}/base.ckpt"]
        else:
            common += [f"base_ckpt={base}"]
        common += [f"resume={folder}"] if resume else []
        monkeypatch.setenv("CRASH", str(-1 if crash is None else crash))
        try:
            train(composed("train", *common, *overrides), folder)
        except Crashed:
            assert crash is not None
        else:
            assert crash is None
        return folder

    return run


def steps_of(folder: Path) -> list[int]:
    found = sorted((folder / "checkpoints").glob("*.ckpt"))
    return [read_checkpoint(path, limits({}))["global_step"] for path in found]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "crashes"),
    [
        (LORA, (10, 36)),
        ((*LORA, *REPLAY), (10, 36)),
        ((*LORA, "data.seed=null", "lora.dropout=0.5", "data.replay=9"), (20, 47)),
        ((*LORA, "+trainer.val_check_interval=14", "trainer.log_every_n_steps=1"), (16, 30)),
        ((*LORA, "+trainer.accumulate_grad_batches=3", "lora.dropout=0.2"), (9, 40)),
        (TWO_EPOCHS, (16, 52)),
        ((*TWO_EPOCHS, "data.seed=null", "data.batch_size=3500", "trainer.max_epochs=9"), (3, 8)),
        (("stage=finetune", *LORA[1:], "trainable=linear2.*"), (10, 36)),
    ],
    ids=["lora", "replay", "null", "validated", "accumulated", "epochs", "one_step", "finetune"],
)
def test_twice_cut_short_it_ends_as_it_would_have(
    go: Go, overrides: tuple[str, ...], crashes: tuple[int, int]
) -> None:
    whole = go("whole", *overrides)
    first, second = crashes
    folder = go("cut", *overrides, crash=first)
    assert not (folder / "results.json").exists()
    go("cut", *overrides, crash=second, resume=True)
    assert 0 < max(steps_of(folder)) <= second
    go("cut", *overrides, resume=True)
    assert differences(left_by(whole), left_by(folder)) == []
    if "stage=pretrain" in overrides:
        assert (whole / "base.ckpt").read_bytes() == (folder / "base.ckpt").read_bytes()


def test_it_goes_on_where_the_checkpoint_ends(go: Go, caplog: pytest.LogCaptureFixture) -> None:
    folder = go("run", *LORA, "logger=none", crash=30)
    assert steps_of(folder) == [28, 21]
    with caplog.at_level("INFO", "lora_mnist.resume"):
        go("run", *LORA, "logger=none", resume=True)
    assert "going on after step 28" in caplog.text


def test_before_the_first_checkpoint_it_begins_again(go: Go) -> None:
    whole = go("whole", *LORA)
    folder = go("cut", *LORA, crash=3)
    go("cut", *LORA, resume=True)
    assert differences(left_by(whole), left_by(folder)) == []


@pytest.mark.parametrize("damaged", [["last"], ["last", "previous"]])
def test_a_damaged_checkpoint_falls_back_to_the_other(
    go: Go, caplog: pytest.LogCaptureFixture, damaged: list[str]
) -> None:
    whole = go("whole", *LORA, "logger=none")
    folder = go("cut", *LORA, "logger=none", crash=30)
    for name in damaged:
        path = folder / "checkpoints" / f"{name}.ckpt"
        path.write_bytes(path.read_bytes()[:-1000])
    with caplog.at_level("INFO", "lora_mnist.resume"):
        go("cut", *LORA, "logger=none", crash=32, resume=True)
    assert caplog.text.count("no checkpoint, or damaged") == len(damaged)
    expected = "after step 21" if len(damaged) == 1 else "going on from the beginning"
    assert expected in caplog.text
    assert steps_of(folder) == [28, 21]
    go("cut", *LORA, "logger=none", resume=True)
    adapters = [run / "adapter" / WEIGHTS_NAME for run in (whole, folder)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def reshaped(last: dict[str, Any]) -> None:
    (state,) = last["optimizer_states"]
    state["state"][0]["exp_avg"] = torch.zeros(3)


CRAFTED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "far": (
        lambda last: last["going_on"].update(place=(0, 0, 2, 10**12)),
        r"ValueError: no run comes to Place\(.*\) in 7 steps",
    ),
    "shuffled": (
        lambda last: last["going_on"].update(place=(0, 10**12, 2, 7)),
        "ValueError: no run comes to",
    ),
    "later": (lambda last: last["going_on"].update(epoch=10**12), "ValueError: no run comes to"),
    "optimizer": (reshaped, "ValueError: the optimizer's exp_avg has another size"),
    "lists": (lambda last: last.update(optimizer_states="abc"), "AttributeError: "),
    "generators": (lambda last: last["going_on"].update(random={}), "KeyError: 'numpy'"),
    "base": (
        lambda last: last["state_dict"].update({"net.linear1.bias\x1b[2J": torch.ones(16)}),
        r"ValueError: state_dict holds net.linear1.bias\\x1b\[2J, which is not the adapter's",
    ),
    "version": (
        lambda last: last.update({"pytorch-lightning_version": "x"}),
        "InvalidVersion: Invalid version: 'x'",
    ),
}


@pytest.mark.parametrize("kind", CRAFTED)
def test_a_crafted_checkpoint_is_refused_in_one_line(go: Go, kind: str) -> None:
    craft, message = CRAFTED[kind]
    path = go("run", *LORA, "logger=none", crash=9) / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    craft(content)
    torch.save(content, path)
    with pytest.raises(UserError, match=f"{path}: training cannot go on from it .{message}"):
        go("run", *LORA, "logger=none", resume=True)


def test_a_folder_in_the_place_of_a_checkpoint_is_refused(go: Go) -> None:
    path = go("run", *LORA, "logger=none", crash=9) / "checkpoints" / "last.ckpt"
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=f"^resume=.*: {path} is a folder; expected a checkpoint"):
        go("run", *LORA, "logger=none", resume=True)


@pytest.mark.parametrize("fails", ["_test", "collect_results", "save_adapter", "write_results"])
def test_what_fails_after_training_is_made_up_for(
    go: Go, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """Averaged weights have taken the place of those that training went on from."""
    options = (*LORA, *REPLAY)
    whole = go("whole", *options)

    def crash(*_: Any, **__: Any) -> None:
        raise Crashed

    with monkeypatch.context() as patched, pytest.raises(AssertionError):
        patched.setattr(lora_mnist.train, fails, crash)
        go("cut", *options)
    folder = go("cut", *options, resume=True)
    assert differences(left_by(whole), left_by(folder)) == []


def test_a_csv_log_has_each_row_once(go: Go) -> None:
    options = (*LORA, "logger=csv", "trainer.log_every_n_steps=2")
    logs = []
    for name, crash in (("whole", None), ("cut", 30)):
        folder = go(name, *options, crash=crash)
        if crash:
            go(name, *options, resume=True)
        with (folder / "csv" / "metrics.csv").open(newline="") as file:
            logs.append(sorted(map(str, csv.DictReader(file))))
        assert [path.name for path in (folder / "csv").glob("metrics*")] == ["metrics.csv"]
    assert logs[0] == logs[1]


def test_more_steps_are_trained(go: Go) -> None:
    """As if they had been asked for from the beginning, and the curves show no trace."""
    whole = go("whole", *LORA)
    folder = go("longer", *LORA, "trainer.max_steps=31")
    assert read_results(folder)["steps"] == 31
    with pytest.raises(UserError, match=r"this run has finished; expected a larger trainer\.max"):
        go("longer", *LORA, "trainer.max_steps=31", resume=True)
    go("longer", *LORA, crash=33, resume=True)
    go("longer", *LORA, resume=True)
    assert differences(farther(whole), farther(folder)) == []
    with pytest.raises(UserError, match="^trainer.max_steps=31: expected 50 or more, as in resume"):
        go("longer", *LORA, "trainer.max_steps=31", resume=True)


def test_more_epochs_are_trained(go: Go) -> None:
    whole = go("whole", *TWO_EPOCHS)
    folder = go("longer", *TWO_EPOCHS, "trainer.max_epochs=1")
    go("longer", *TWO_EPOCHS, resume=True)
    assert differences(farther(whole), farther(folder)) == []


def farther(folder: Path) -> dict[str, Any]:
    """What a run leaves, but for its validations: their steps depend on where a run first ended."""
    found = left_by(folder)
    return {**found, "curves": {"train/loss": found["curves"]["train/loss"]}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora.rank=4", "lora.rank=4: expected 1, as in resume="),
        ("optimizer.lr=0.1", "optimizer.lr=0.1: expected 0.001, as in resume="),
        ("seed=1", "seed=1: expected 0, as in resume="),
        ("digit=3", "digit=3: expected 9, as in resume="),
        ("data.replay=9", "data.replay=9: expected 0, as in resume="),
        ("trainer.max_steps=20", "trainer.max_steps=20: expected 50 or more, as in resume="),
        ("scheduler=linear", r"scheduler: expected none instead of torch\S+, as in resume="),
        ("callbacks=averaging", "callbacks.averaging._target_=lightning.*: expected null, as in"),
        ("callbacks.checkpoint=null", "resume=.*: expected callbacks.checkpoint to be kept"),
        ("base_ckpt={other}", "base_sha256=.*: expected .*, as in resume="),
        ("stage=finetune", "stage=finetune: expected lora, as in resume="),
    ],
)
def test_other_settings_are_refused_by_their_key(
    go: Go, tmp_path: Path, override: str, message: str
) -> None:
    folder = go("run", *LORA, "logger=none", crash=9)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    if "{other}" in override:
        other = torch.load(small_base(tmp_path / "outputs"), weights_only=True)
        other["state_dict"]["linear1.bias"] += 1
        torch.save(other, tmp_path / "other.ckpt")
        override = override.replace("{other}", f"{tmp_path}/other.ckpt")
    with pytest.raises(UserError, match=f"^{message}"):
        go("run", *LORA, "logger=none", override, resume=True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_more_steps_than_a_schedule_counts_are_refused(go: Go) -> None:
    go("run", *LORA, "scheduler=linear", "logger=none", crash=9)
    with pytest.raises(UserError, match=r"^trainer.max_steps=60: expected 50, since scheduler\.t"):
        go("run", *LORA, "scheduler=linear", "logger=none", "trainer.max_steps=60", resume=True)
    with pytest.raises(UserError, match=r"^scheduler: expected torch\S+ instead of none, as in"):
        go("run", *LORA, "logger=none", resume=True)


def test_how_often_to_save_may_change_and_a_base_may_move(go: Go, tmp_path: Path) -> None:
    go("run", *LORA, "logger=none", crash=9)
    base = small_base(tmp_path / "outputs").replace(tmp_path / "moved.ckpt")
    options = ("callbacks.checkpoint.every_steps=5", f"base_ckpt={base}", "~callbacks.progress_bar")
    assert read_results(go("run", *LORA, "logger=none", *options, resume=True))["steps"] == 50


def test_a_run_that_is_still_going_is_refused(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes would write into one folder."""
    refused: list[str] = []

    def test_while_it_runs(*_: Any) -> None:
        with monkeypatch.context() as patched, pytest.raises(UserError) as caught:
            patched.setattr(lora_mnist.train, "_test", honest)
            go("run", *LORA, "logger=none", resume=True)
        refused.append(str(caught.value))
        raise Crashed

    honest = lora_mnist.train._test
    monkeypatch.setattr(lora_mnist.train, "_test", test_while_it_runs)
    with pytest.raises(AssertionError):
        go("run", *LORA, "logger=none")
    assert "a run is still going there; expected one at a time" in refused[0]


def test_a_new_run_in_an_old_folder_starts_anew(go: Go) -> None:
    folder = go("run", *LORA, "logger=none", crash=30)
    go("run", *LORA, "logger=none", "lora.rank=2", crash=3)
    assert steps_of(folder) == []
    record = json.loads((folder / "checkpoints" / "run.json").read_text())
    assert record["settings"]["lora.rank"] == 2
    assert record["finished"] is False


def test_a_notebook_finds_the_run(go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # as without hydra.main
    folder = go("outputs/lora/2026", *LORA, "logger=none", crash=9)
    monkeypatch.setenv("CRASH", "-1")
    base = f"base_ckpt={tmp_path}/outputs/base/mnist.ckpt"
    options = (*SMALL, *few_images(), CRASH, f"paths.outputs={tmp_path}/outputs", base)
    results = train(composed("train", *options, *LORA, "logger=none", "resume=latest"))
    assert results == read_results(folder)


# --- real processes ------------------------------------------------------------------------------

FULL_LORA = ("stage=lora", "digit=9", "trainer.max_steps=60", *REPLAY)
FULL_PRETRAIN = ("stage=pretrain", "data.batch_size=100", "trainer.max_epochs=2")


def command(tmp_path: Path, name: str, *overrides: str, crash: str = "-1") -> tuple[int, str]:
    """``python train.py`` with few images, and what it says on standard error."""
    base = f"base_ckpt={small_base(tmp_path / 'bases')}"
    if "stage=pretrain" in overrides:
        base = f"base_ckpt={tmp_path}/{name}.ckpt"
    done = run_process(
        *("train.py", *overrides, *SMALL, *few_images(), CRASH, base),
        *(f"paths.outputs={tmp_path}/{name}", "callbacks.checkpoint.every_steps=7"),
        **{"CRASH": crash, "PYTHONPATH": f"{ROOT}/tests", "OMP_NUM_THREADS": "1"},
    )
    return done.returncode, done.stderr


def only_run(tmp_path: Path, name: str, stage: str) -> Path:
    (folder,) = (tmp_path / name / stage).iterdir()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "stage", "crashes"),
    [(FULL_LORA, "lora", (24, 41)), (FULL_PRETRAIN, "pretrain", (20, 51))],
    ids=["lora", "pretrain"],
)
def test_killed_twice(
    tmp_path: Path, overrides: tuple[str, ...], stage: str, crashes: tuple[int, int]
) -> None:
    assert command(tmp_path, "whole", *overrides)[0] == 0
    assert command(tmp_path, "cut", *overrides, crash=f"{crashes[0]}:SIGKILL")[0] == -9
    folder = only_run(tmp_path, "cut", stage)
    hydra = {path: path.read_bytes() for path in (folder / ".hydra").iterdir()}
    again = (*overrides, "resume=latest")
    assert command(tmp_path, "cut", *again, crash=f"{crashes[1]}:SIGKILL")[0] == -9
    assert command(tmp_path, "cut", *again)[0] == 0
    assert only_run(tmp_path, "cut", stage) == folder
    assert {path: path.read_bytes() for path in (folder / ".hydra").iterdir()} == hydra
    whole = only_run(tmp_path, "whole", stage)
    assert differences(left_by(whole), left_by(folder)) == []
    if stage == "pretrain":
        bases = [tmp_path / f"{name}.ckpt" for name in ("whole", "cut")]
        assert bases[0].read_bytes() == bases[1].read_bytes()
    code, said = command(tmp_path, "cut", *again)
    assert code == 2
    last = said.splitlines()[-1]
    assert last.startswith("resume=latest: this run has finished; expected a larger trainer.max")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path, name: str, code: int) -> None:
    assert command(tmp_path, "whole", *FULL_LORA)[0] == 0
    found, said = command(tmp_path, "cut", *FULL_LORA, crash=f"24:{name}")
    assert found == code
    folder = only_run(tmp_path, "cut", "lora")
    # The step under way is done, and kept.
    last = read_checkpoint(folder / "checkpoints" / "last.ckpt", limits({}))
    assert last["global_step"] in (24, 25)
    last = said.splitlines()[-1]
    assert re.match(f"interrupted by {name}; go on with: python train.py stage=lora digit=9 ", last)
    words = shlex.split(last.partition("go on with: python ")[2])
    assert words[-1] == f"resume={folder}"
    done = run_process(*words, CRASH="-1", PYTHONPATH=f"{ROOT}/tests", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    whole = only_run(tmp_path, "whole", "lora")
    assert differences(left_by(whole), left_by(folder)) == []


@pytest.mark.slow
def test_two_processes_go_on_together(tmp_path: Path) -> None:
    options = ("stage=lora", "trainer=ddp_sim", "data.replay=10", "trainer.max_steps=24")
    options = (*options, "logger=none", "trainer.log_every_n_steps=7")
    assert command(tmp_path, "whole", *options)[0] == 0
    assert command(tmp_path, "cut", *options, crash="18:SIGKILL")[0] != 0
    assert command(tmp_path, "cut", *options, "resume=latest")[0] == 0
    adapters = [only_run(tmp_path, name, "lora") / "adapter" for name in ("whole", "cut")]
    assert len({(folder / WEIGHTS_NAME).read_bytes() for folder in adapters}) == 1


def test_a_sweep_has_its_own_way_to_go_on(cli: Any, go: Go, tmp_path: Path) -> None:
    folder = go("run", *LORA, "logger=none", crash=9)
    done = cli("train.py", "-m", *LORA, *SMALL, "lora.rank=1,2", f"resume={folder}")
    assert done.code == 1
    assert "expected a single run; a sweep goes on with sweep.resume" in done.out + done.err
