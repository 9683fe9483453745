"""The package stands alone: copied into another project, with disk/files.py beside it, it works."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lora_mnist

SOURCE = Path(lora_mnist.__file__).parent

USE = """
import sys
from pathlib import Path

import torch
from torch import nn

from other.tools.lora import add_lora, load_adapter, lora_parameters, merge_lora, save_adapter


def base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


net = add_lora(base(), rank=2)
for parameter in lora_parameters(net):
    nn.init.normal_(parameter)
x = torch.randn(5, 4)
loaded = load_adapter(base(), save_adapter(net, Path(sys.argv[1])))
assert torch.equal(loaded(x), net(x))
torch.testing.assert_close(merge_lora(loaded)(x), net(x))
"""


@pytest.mark.slow
def test_it_works_inside_another_package(tmp_path: Path) -> None:
    room = tmp_path / "other" / "tools"
    shutil.copytree(SOURCE / "lora", room / "lora", ignore=shutil.ignore_patterns("__pycache__"))
    (room / "disk").mkdir()
    shutil.copy(SOURCE / "disk" / "files.py", room / "disk")
    # None in sys.modules makes every import of lora_mnist fail.
    script = f"import sys; sys.modules['lora_mnist'] = None; sys.path.insert(0, {str(tmp_path)!r})"
    done = subprocess.run(
        [sys.executable, "-c", script + USE, str(tmp_path / "adapter")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
