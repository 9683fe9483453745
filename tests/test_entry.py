"""What the commands share: how they refuse, what they leave, and where they may be started."""

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from composed import QUICK, SMALL, small_base
from helpers.commands import ROOT, only_run, read_results, run_process
from omegaconf import OmegaConf

TWO_LINES = """\
  python train.py stage=pretrain         to train a base
  python train.py stage=lora digit=9     to repair it with an adapter"""


@pytest.fixture
def base(tmp_path: Path) -> str:
    return f"base_ckpt={small_base(tmp_path / 'bases')}"


# --- a stage -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("lora.rank=4",),
        ("digit=9", "trainer.max_steps=100"),
        ("experiment=notebook",),
        ("-m", "seed=0,1"),
        ("-m", "experiment=notebook", "seed=0,1"),
    ],
)
def test_a_command_without_a_stage_trains_nothing(
    cli: Any, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    done = cli("train.py", *arguments)
    assert done.code == 2
    assert done.out == ""
    assert "stage" in done.err.splitlines()[0]
    assert TWO_LINES in done.err
    assert not (tmp_path / "outputs" / "base").exists()
    assert not list(tmp_path.rglob("results.json"))


def test_an_experiment_names_the_stage(cli: Any, base: str, tmp_path: Path) -> None:
    done = cli("train.py", "experiment=repair", *QUICK, base)
    assert done.code == 0, done.err
    run = only_run(tmp_path / "outputs", "lora")
    assert read_results(run)["stage"] == "lora"
    assert f"run: {run}" in done.err
    assert {path.name for path in run.iterdir()} >= {
        *(".hydra", "train.log", "results.json", "adapter"),
    }
    log = (run / "train.log").read_text()
    assert "accuracy:" in log
    assert "accuracy:" in done.out
    assert "base unchanged" in log
    assert "base unchanged" in done.err


# --- mistakes ------------------------------------------------------------------------------------

#: One of each group; the functions that refuse them know the others.
MISTAKES = {
    "digit=10": "digit=10: expected null, a class from 0 to 9",
    "net.hidden_sizes=[0]": "net.hidden_sizes=[0]: expected integers >= 1",
    "lora.rank=0": "lora.rank=0: expected an integer >= 1",
    "loss.fit=l1": "loss.fit=l1: expected one of cross_entropy, hinge",
    "optimizer.lr=-1": "optimizer.lr=-1: expected a finite number >= 0",
    "optimizer.lr=abc": "optimizer.lr=abc: expected a finite number >= 0",
    "optimizer.fused=${nope}": "optimizer.fused: Interpolation key 'nope' not found",
    "paths.data=3": "paths.data=3: expected a file or folder (not a name)",
    "base_ckpt=''": "base_ckpt='': expected a file or folder",
    "callbacks.checkpoint=3": "callbacks.checkpoint=3: expected null, or a _target_",
    "trainer.max_epochs=[1]": "trainer.max_epochs=[1]: expected an integer >= -1, or null",
    "data.batch_size=10000000000": "data.batch_size=10000000000: expected an integer from 1 to",
    "data.data_dir=3": "data.data_dir=3: expected a folder",
    "trainer.devices=0": "trainer.devices=0: ",
    "+callbacks.checkpoint.nope=1": "callbacks.checkpoint: Checkpoints.__init__() got an",
    "+adapter=x": "adapter=x: nothing reads this key with stage=lora; expected one of",
    "base_ckpt=/none": "base_ckpt=/none: no such file; make it with: python train.py stage=pretr",
}


@pytest.mark.parametrize("value", ["3", "null", "[1]", "{a:1}", "a" * 300])
def test_what_names_no_option_of_a_group(cli: Any, value: str) -> None:
    done = cli("train.py", "stage=lora", f"optimizer={value}")
    assert done.code == 2
    names = "adam, adamw, loraplus; or ~optimizer, for none"
    assert done.err == f"optimizer={value}: expected one of {names}\n"


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_is_one_line(cli: Any, base: str, tmp_path: Path, override: str) -> None:
    run = tmp_path / "run"
    bases = () if override.startswith("base_ckpt") else (base,)
    network = "callbacks.checkpoint=null" if "callbacks" not in override else "logger=none"
    done = cli(
        *("train.py", "stage=lora", *SMALL, network, "trainer.max_steps=3", *bases, override),
        f"hydra.run.dir={run}",
    )
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith(MISTAKES[override])
    assert done.out == ""
    assert {path.name for path in run.iterdir()} == {".hydra", "train.log"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stage=nope", "Available options in 'stage'"),
        ("lora.nope=1", "Key 'nope' is not in struct"),
    ],
)
def test_hydras_own_refusals_stay(cli: Any, override: str, message: str) -> None:
    stage = () if override.startswith("stage") else ("stage=lora",)
    done = cli("train.py", *stage, override)
    assert done.code == 1
    assert message in done.err


@pytest.mark.parametrize(
    ("entry", "argument", "advice"),
    [
        ("train.py", "lora.target_modules=linear[12]", """'lora.target_modules="linear[12]"'"""),
        (
            "train.py",
            "lora.target_modules=conv[0-9]|linear1",
            """'lora.target_modules="conv[0-9]|linear1"'""",
        ),
        ("predict.py", "images=my/[0-9].png", """'images="my/[0-9].png"'"""),
    ],
)
def test_a_value_that_hydra_cannot_read_is_answered_with_quotes(
    cli: Any, entry: str, argument: str, advice: str
) -> None:
    stage = ("stage=lora",) if entry == "train.py" else ()
    done = cli(entry, *stage, argument)
    assert done.code == 2
    assert done.err == f"{argument}: expected quotes around the value: {advice}\n"


@pytest.mark.slow
def test_full_error_brings_the_traceback(tmp_path: Path) -> None:
    arguments = ("train.py", "stage=pretrain", "digit=10", f"hydra.run.dir={tmp_path}/run")
    done = run_process(*arguments, HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


# --- folders -------------------------------------------------------------------------------------


def test_a_run_folder_is_never_shared(cli: Any, base: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / ".hydra").mkdir(parents=True)
    (run / "results.json").write_text("{}")
    done = cli("train.py", "stage=lora", *QUICK, base, f"hydra.run.dir={run}")
    assert done.code == 2
    assert done.err == f"hydra.run.dir={run}: holds another run; expected a new folder\n"
    assert {path.name for path in run.iterdir()} == {".hydra", "results.json"}
    assert not list((run / ".hydra").iterdir())


def test_an_output_folder_that_cannot_be_made(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "outputs").touch()
    for flags in ((), ("-m", "seed=0,1")):
        done = cli("train.py", *flags, "stage=pretrain")
        assert done.code == 2
        assert "cannot be written" in done.err
        assert len(done.err.splitlines()) == 1


@pytest.mark.slow
def test_commands_run_from_any_folder(tmp_path: Path) -> None:
    """Data and outputs are the project's; what a user names is where he stands."""
    here = tmp_path / "here"
    here.mkdir()
    before = set((ROOT / "outputs").rglob("*"))

    def command(entry: str, *overrides: str) -> None:
        program = [sys.executable, str(ROOT / entry), *overrides, *SMALL]
        done = subprocess.run(program, cwd=here, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    outputs = f"paths.outputs={tmp_path}/outputs"
    command("train.py", "stage=pretrain", "trainer.max_steps=3", outputs)
    command("eval.py", "base_ckpt=../outputs/base/mnist.ckpt", "hydra.run.dir=../run", outputs)
    assert read_results(tmp_path / "run")["stage"] == "eval"
    assert not list(here.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"here", "outputs", "run"}
    assert set((ROOT / "outputs").rglob("*")) == before


# --- what needs no torch -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        pytest.param(  # Hydra takes a second and a half to list all groups
            ("train.py", "--help"),
            ["stage=pretrain", "train.py stage=lora digit=9", "train.py stage=lora --help"],
            marks=pytest.mark.slow,
        ),
        (("train.py", "stage=lora", "--cfg", "job", "--resolve"), ["target_modules: all"]),
        (("eval.py", "--cfg", "job"), ["stage: eval", "adapter: null"]),
    ],
)
def test_help_and_config_need_no_torch(arguments: tuple[str, ...], lines: list[str]) -> None:
    """And help says how to go on."""
    done = run_process("-X", "importtime", *arguments)
    assert done.returncode == 0, done.stderr
    assert "torch" not in done.stderr
    assert all(line in done.stdout for line in lines)


def test_ones_own_defaults_count(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "default.yaml").write_text("optimizer:\n  lr: 0.5\n")
    search = f"hydra.searchpath=[file://{tmp_path}]"
    done = cli("train.py", "--cfg", "job", "stage=lora", search)
    assert done.code == 0
    assert OmegaConf.create(done.out).optimizer.lr == 0.5


def test_a_run_that_could_leave_nothing_ends_at_once(
    cli: Any, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", fail)
        done = cli("train.py", "stage=lora", base, f"hydra.run.dir={tmp_path}/run")
    assert done.code == 1
    assert done.err == f"{tmp_path}/run: cannot be written (No space left on device)\n"
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("resume", ["latest", "nowhere"])
def test_a_run_to_go_on_with_that_is_not_there(cli: Any, tmp_path: Path, resume: str) -> None:
    done = cli("train.py", "stage=lora", f"resume={resume}")
    assert done.code == 2
    assert done.err.startswith(f"resume={resume}: ")
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "outputs").exists()
