import shutil
import subprocess

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st

from lora_mnist.config.run import quote_for_hydra
from lora_mnist.project import format_command

ARGUMENTS = [
    "-m",
    "lora.target_modules='linear[12]'",
    "images='my pictures/*.png'",
    "",
    "note='say \"$HOME\" `id` \\ it!'",
    "a={b:[1,2]}",
]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_command_line_is_ready_to_paste(shell):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    script = f"python() {{ printf '%s\\0' \"$@\"; }}; {format_command('train', ARGUMENTS)}"
    done = subprocess.run([shell, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\0")[:-1] == ["train.py", *ARGUMENTS]


@given(st.text(st.characters(min_codepoint=32, exclude_categories=["C"]), min_size=1))
@example("null")
@example("1e5")
@example("1.50")
def test_override_has_a_class_or_a_path_of_any_name(name):
    for text in (name, f"/{name}"):
        value = OverridesParser.create().parse_override(f"target={quote_for_hydra(text)}").value()
        assert str(value) == text
