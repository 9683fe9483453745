"""The package stands alone: it can be copied into another project, with disk/files.py beside it."""

import re
import sys
from pathlib import Path

import lora_mnist.lora


def test_it_imports_torch_safetensors_and_no_other_library() -> None:
    imported = set[str]()
    for path in Path(lora_mnist.lora.__file__).parent.glob("*.py"):
        imported |= set(re.findall(r"^(?:from|import) (\w+)", path.read_text(), re.MULTILINE))
    assert imported - sys.stdlib_module_names == {"torch", "safetensors"}
