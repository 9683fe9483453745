"""The program ``lora-mnist``, and the wheel that brings it."""

import os
import subprocess
import sys
import zipfile

import pytest
from composed import FEW, SMALL
from helpers.commands import ROOT, only_run

from lora_mnist.entry import main

NAMES = "train eval predict export demo\n"


@pytest.fixture
def typed(monkeypatch, capfd):
    """``typed("train", ...)``: what ``lora-mnist train ...`` answers: exit code, output, errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["/somewhere/bin/lora-mnist", *arguments])
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code
        return (code, *capfd.readouterr())

    return run


def test_it_says_which_commands_there_are(typed):
    code, out, err = typed()
    assert (code, out) == (2, "")
    assert typed("--help") == (0, err, "")
    assert typed("trian") == (2, "", f"trian: no such command\n\n{err}")
    for name in NAMES.split():
        assert f"lora-mnist {name}" in err


@pytest.mark.parametrize("name", NAMES.split())
def test_each_name_is_a_command(typed, name):
    code, out, _ = typed(name, "--cfg", "job")
    assert code == 0
    assert f"root: {ROOT}" not in out  # as it stands, not resolved
    assert f"stage: {'???' if name == 'train' else name}" in out


_SCRIPT = """
import sys
from lora_mnist.entry import main
for line in sys.stdin.read().splitlines():
    sys.argv = ["lora-mnist", *line.split()]
    main()
"""


@pytest.mark.slow
def test_the_wheel_is_all_that_is_needed(tmp_path, monkeypatch):
    """Unpacked into a folder of its own it trains, tests and draws in another one."""
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
    empty = tmp_path / "empty"
    empty.mkdir()
    small = " ".join((*SMALL[:2], *FEW, "trainer.max_steps=100 optimizer.lr=0.01"))
    commands = [f"train stage=pretrain {small} figures=false", f"eval {FEW[1]}"]
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        input="\n".join(commands),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in empty.iterdir()} == {"outputs"}
    report = only_run(empty / "outputs", "eval") / "report.html"
    assert f"lora-mnist eval {FEW[1]}" in report.read_text()
