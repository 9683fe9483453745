"""The package stands alone: it can be copied into another project, with disk/files.py beside it."""

import ast
import sys
from pathlib import Path

import pytest

import lora_mnist.lora

MODULES = sorted(Path(lora_mnist.lora.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_it_imports_torch_safetensors_and_one_file_of_ours(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules = [node.module or ""]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1 or node.module == "disk.files"
            continue
        else:
            continue
        for module in modules:
            package = module.partition(".")[0]
            assert package in {"torch", "safetensors", *sys.stdlib_module_names}
