"""The program ``lora-mnist``, and the wheel that brings it."""

import signal
import sys
import zipfile

import pytest
from helpers.commands import ROOT, run_process

from lora_mnist.cli.entry import main, run_command


def test_each_name_is_a_command(monkeypatch, capfd):
    def typed(*arguments):
        monkeypatch.setattr(sys, "argv", ["/somewhere/bin/lora-mnist", *arguments])
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code
        return (code, *capfd.readouterr())

    code, out, names = typed()
    assert (code, out) == (2, "")
    assert typed("--help") == (0, names, "")
    assert typed("trian")[0] == 2
    assert typed("--config-name") == (2, "", names)
    assert typed("--config-name", "trian")[0] == 2
    for name in ("train", "eval", "predict", "export", "demo"):
        assert f"lora-mnist {name}" in names
        code, out, _ = typed(name, "--cfg", "job")
        assert code == 0
        assert f"stage: {'???' if name == 'train' else name}" in out


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="Windows has no such mask")
def test_a_command_that_cannot_be_imported_leaves_no_signal_blocked(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["demo.py"])
    with pytest.raises(ModuleNotFoundError):
        run_command("lora_mnist.commands.nope.nope", "demo")
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGINT, signal.SIGTERM}


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
