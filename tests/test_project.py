import shutil
import subprocess

import pytest
from helpers.commands import ROOT, run_process
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st

from lora_mnist.command import override
from lora_mnist.project import command_line

ARGUMENTS = [
    "-m",
    "lora.target_modules='linear[12]'",
    "images='my pictures/*.png'",
    "",
    "note='say \"$HOME\" `id` \\ it!'",
    "a={b:[1,2]}",
]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_command_is_ready_to_paste(shell):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    script = f"python() {{ printf '%s\\0' \"$@\"; }}; {command_line('train', ARGUMENTS)}"
    done = subprocess.run([shell, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\0")[:-1] == ["train.py", *ARGUMENTS]


@given(st.text(st.characters(min_codepoint=32, exclude_categories=["C"]), min_size=1))
@example("null")
@example("1e5")
@example("1.50")
def test_a_class_or_a_path_of_any_name_can_be_typed(name):
    for text in (name, f"/{name}"):
        value = OverridesParser.create().parse_override(override("target", text)).value()
        assert str(value) == text


def test_an_entry_of_another_checkout_is_told(tmp_path):
    """Two clones in one environment: the package of one runs, whichever is started."""
    (tmp_path / "src" / "lora_mnist").mkdir(parents=True)
    entry = shutil.copy(ROOT / "eval.py", tmp_path)
    done = run_process(str(entry), "--cfg", "job", PYTHONPATH=str(ROOT / "src"))
    assert f"{tmp_path} is another checkout than that of {ROOT / 'src'}" in done.stderr
