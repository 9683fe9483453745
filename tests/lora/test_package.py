"""The package stands alone: it can be copied into another project, with disk/files.py beside it."""

import pydoc
import re
import subprocess
import sys
from pathlib import Path

import lora_mnist
import lora_mnist.api
import lora_mnist.lora


def test_it_imports_torch_safetensors_and_no_other_library() -> None:
    imported = set[str]()
    for path in Path(lora_mnist.lora.__file__).parent.glob("*.py"):
        imported |= set(re.findall(r"^(?:from|import) (\w+)", path.read_text(), re.MULTILINE))
    assert imported - sys.stdlib_module_names == {"torch", "safetensors"}


def test_the_package_shows_its_functions() -> None:
    """To dir, to tab completion, and with their docstrings to help, though torch is loaded late."""
    assert set(dir(lora_mnist)) == {*lora_mnist.api.__all__, "__version__"}
    assert "merge_lora(model" in pydoc.render_doc(lora_mnist, renderer=pydoc.plaintext)
    script = "import lora_mnist, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
