"""What the commands share: how they refuse, what they leave, where they start; and the wheel."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from composed import SMALL
from helpers.commands import ROOT, only_run, read_results, run_process
from helpers.sweeping import TOY, start
from omegaconf import OmegaConf

from lora_mnist.cli.main import main
from lora_mnist.config.run import Run


@pytest.mark.parametrize("arguments", [("lora.rank=4",), ("-m", "experiment=notebook", "seed=0,1")])
def test_a_command_without_a_stage_trains_nothing(cli, tmp_path, arguments):
    done = cli("train.py", *arguments)
    first, *commands = done.err.splitlines()
    assert (done.code, done.out, first) == (2, "", "stage: missing; expected one of")
    for command, choice in zip(commands, ("stage=pretrain", "experiment=repair"), strict=True):
        assert "train.py " in command
        assert f" {arguments[-1]} " in command
        assert f" {choice} " in command
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argument", "answer"),
    [
        ("stage=nope", "stage=nope: "),
        ("trainer.max_steps={a:1", "trainer.max_steps={a:1: "),
        ("hydra/launcher=nope", "hydra/launcher=nope: expected one of basic"),
        ("trainer.limit_val_batches=0", " +trainer.limit_val_batches"),
        ("digit=4", "digit=4: expected no other class than target=9"),
        ("logger=0", "logger=0: expected one of csv, "),
        ("augment=[auto,flip]", "augment=[auto,flip]: expected auto alone"),
        ("augment=[auto,flip],none", "augment=[auto,flip],none: expected auto alone"),
        ("loss=null", "loss=null: expected one of cross_entropy, "),
        ("Flöte", "Flöte: expected KEY=VALUE"),
        ("trainer.precision=16-true", "trainer.precision=16-true: "),
        ("run_name=${nope}", ": Interpolation key 'nope' not found"),
    ],
)
def test_a_refusal_is_one_line_and_leaves_no_run(cli, tmp_path, argument, answer):
    done = cli("train.py", "stage=lora", "target=9", argument)
    assert (done.code, done.out) == (2, "")
    assert answer in done.err
    assert len(done.err.splitlines()) == 1
    assert not list(tmp_path.glob("outputs/*/*"))


@pytest.mark.parametrize("text", ["photos/Flöte/*.png", "epoch=3 step=10.ckpt", "a (1).png"])
def test_a_name_needs_no_quotes_of_hydras(cli, tmp_path, text):
    """Options may stand behind keys."""
    cli(TOY, f"note={text}", "--config-name", "plain", "x=2").ok()
    folder = only_run(tmp_path / "outputs", "toy")
    assert OmegaConf.load(folder / ".hydra" / "config.yaml").note == text


def test_what_no_key_has_caused_ends_in_a_traceback_and_keeps_its_log(cli, tmp_path):
    assert cli(TOY, "x=0", here=tmp_path).code == 2  # which leaves no folder
    assert not list(tmp_path.iterdir())
    done = start(tmp_path, "x=-1")
    _, err = done.communicate(timeout=60)
    folder = only_run(tmp_path / "outputs", "toy")
    assert done.returncode == 1
    assert 'toy.py", line' in err
    assert err.endswith(f"RuntimeError: no such thing\nlog: {folder}/toy.log\n")
    assert "Error executing job" not in err
    assert 'toy.py", line' in (folder / "toy.log").read_text()
    assert cli(TOY, "x=0").code == 2
    assert only_run(tmp_path / "outputs", "toy") == folder
    assert cli(TOY, "x=-2").code == 130
    with pytest.raises(BrokenPipeError):  # it is not that of | head
        cli(TOY, "x=-4")


def test_commands_run_from_any_folder(cli, outputs, tmp_path):
    """MNIST is the project's; outputs, and what a user names, are where he stands."""
    here = tmp_path / "here"
    here.mkdir()
    before = set((ROOT / "outputs").rglob("*"))
    base = "base_ckpt=../outputs/base/mnist.ckpt"
    few = (*SMALL, "+trainer.limit_test_batches=1", "hydra.run.dir=../run")
    cli("eval.py", *few, base, here=here).ok()
    assert read_results(tmp_path / "run")["stage"] == "eval"
    assert not list(here.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"here", "outputs", "run"}
    assert set((ROOT / "outputs").rglob("*")) == before


#: Commands one after the other in a process that has imported nothing yet.
_WITHOUT_TORCH = """
import runpy, sys
for command in COMMANDS:
    sys.argv = command
    run = runpy.run_path if command[0].endswith(".py") else runpy.run_module
    try:
        run(command[0], run_name="__main__")
    except SystemExit as exit:
        assert exit.code == 2, exit.code
    assert "torch" not in sys.modules, command
"""


def test_neither_a_configuration_nor_a_refusal_waits_for_torch():
    commands = [["train.py", "stage=lora", "--cfg", "job", "--resolve"]]
    commands += [["train.py", "stage=pretrain", "seed=-1"], ["lora_mnist", "eval", "scale=ato"]]
    commands += [[f"{name}.py", "scale=ato"] for name in ("eval", "predict", "export", "demo")]
    done = run_process("-c", _WITHOUT_TORCH.replace("COMMANDS", str(commands)))
    assert done.returncode == 0, done.stderr
    assert "target_modules: all" in done.stdout
    refusals = done.stderr.splitlines()
    assert len(refusals) == len(commands) - 1
    for refusal, command in zip(refusals, commands[1:], strict=True):
        assert refusal.startswith(f"{command[-1]}: expected a ")


def test_nobody_need_read_all_that_is_printed():
    """As ``--help | head`` does not."""
    command = [sys.executable, "train.py", "--help"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("", 141)


def test_the_error_for_another_commands_key_lists_the_commands_that_have_it(cli):
    done = cli("train.py", "stage=lora", "digit=9", "offset=1")
    assert done.err.startswith("offset: nothing reads this key here; ")
    assert "eval, predict, export, demo" in done.err
    assert done.err.endswith("the nearest: lora.offset\n")


def test_overrides_are_removed_by_whole_keys():
    left = ("hydrated=1", "+sweeper=2", "callbacks.checkpoints=1")
    out = ("hydra.run.dir=a", "hydra/launcher=joblib", "~sweep", "callbacks.checkpoint.x=1")
    run = Run(Path(), left + out)
    assert run.overrides_without("hydra", "sweep", "callbacks.checkpoint") == list(left)


def test_each_name_is_a_command(monkeypatch, capfd):
    def format_command(*arguments):
        monkeypatch.setattr(sys, "argv", ["/somewhere/bin/lora-mnist", *arguments])
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code
        return (code, *capfd.readouterr())

    code, out, names = format_command()
    assert (code, out) == (2, "")
    assert format_command("--help") == (0, names, "")
    assert format_command("trian")[0] == 2
    assert format_command("--config-name") == (2, "", names)
    assert format_command("--config-name", "trian")[0] == 2
    for name in ("train", "eval", "predict", "export", "demo"):
        assert f"lora-mnist {name}" in names
        code, out, _ = format_command(name, "--cfg", "job")
        assert code == 0
        assert f"stage: {'???' if name == 'train' else name}" in out


@pytest.mark.slow
def test_the_wheel_is_all_that_is_needed(tmp_path, monkeypatch):
    """Unpacked into a folder of its own it has every file, and its commands start there."""
    build = pytest.importorskip("hatchling.build", reason="the extra dev is not installed")
    monkeypatch.chdir(ROOT)
    wheel = zipfile.ZipFile(tmp_path / build.build_wheel(str(tmp_path)))
    files = set(wheel.namelist())
    for path in (ROOT / "src").rglob("*.py"):
        assert path.relative_to(ROOT / "src").as_posix() in files
    for path in (ROOT / "configs").rglob("*.yaml"):
        name = path.relative_to(ROOT).as_posix()
        assert (f"lora_mnist/{name}" in files) != name.startswith("configs/local/")
    wheel.extractall(tmp_path / "site")
    done = run_process("-m", "lora_mnist", "train", "--help", PYTHONPATH=str(tmp_path / "site"))
    assert "experiment=repair target=weakest       # repair" in done.stdout, done.stderr
