"""Which module imports which: downhill only, and heavy packages only where they are needed."""

import ast
import pydoc
import re
import sys

import pytest
from helpers.commands import ROOT

import lora_mnist
import lora_mnist.api

SOURCE = ROOT / "src" / "lora_mnist"
MODULES = sorted(p for p in SOURCE.rglob("*.py") if p != SOURCE / "__init__.py")
COMMANDS = {"train", "evaluate", "predict", "export", "demo", "report"}
#: What each room may import of the others.
BELOW = {
    "errors": set(),
    "project": set(),
    "progress": set(),
    "disk.files": set(),
    "classifier.significance": set(),
    "lora": {"disk.files"},
    "data": {"errors", "progress", "lora", "disk.files"},
    "disk": {"errors", "lora", "data", "classifier.significance"},
    "classifier": {"errors", "progress", "lora", "data", "disk"},
    "sweep": {"errors", "project", "disk", "classifier.significance"},
    "show": {"errors", "project", "lora", "disk", "sweep", "data", "classifier.significance"},
    "api": {"lora", "classifier"},
    "settings": {"errors", "project"},
    "adapters": {"errors", "project", "checks", "lora", "data", "disk", "classifier", "show"},
    "trainer": {"errors", "progress", "project", "disk"},
    "checks": {"errors", "project", "data", "classifier"},
    "choices": {"errors", "project", "checks", "lora", "data", "disk", "classifier"},
    "learning_rate": {"data", "classifier"},
    "preprocessing": {"errors", "project", "settings", "data", "classifier", "show"},
    "cli": {"errors", "project", "disk", "sweep", "show"},
    "entry": {"cli", "project", *COMMANDS},
}


ROOMS = {"lora", "data", "disk", "classifier", "show", "sweep"}
STEPS = {"errors", "project", "settings", "adapters", "trainer", "preprocessing"}
BELOW |= {key: {*ROOMS, *STEPS, "checks", "choices", "learning_rate"} for key in COMMANDS}


def name_of(path):
    """``lora.layer`` of ``src/lora_mnist/lora/layer.py``, ``lora`` of its ``__init__.py``."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


def imports(path):
    """The modules of this project that a file imports, also within functions."""
    known = {name_of(p) for p in MODULES}
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ["lora_mnist", *path.relative_to(SOURCE).parts[:-1]]
            start = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        for name in names:
            if (ours := name.removeprefix("lora_mnist.")) in known:
                yield ours


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_run_downhill(path):
    name = name_of(path)
    here = name if name in BELOW else name.partition(".")[0]
    for module in imports(path):
        room = module.partition(".")[0]
        assert room == here.partition(".")[0] or {module, room} & BELOW[here], module


def test_lora_imports_torch_safetensors_and_no_other_library():
    """So it can be copied into another project, with disk/files.py beside it."""
    imported = set[str]()
    for path in (SOURCE / "lora").glob("*.py"):
        imported |= set(re.findall(r"^(?:from|import) (\w+)", path.read_text(), re.MULTILINE))
    assert imported - sys.stdlib_module_names == {"torch", "safetensors"}


def test_the_package_shows_its_functions():
    """To dir, to tab completion, and with their docstrings to help, though torch is loaded late."""
    assert set(dir(lora_mnist)) == {*lora_mnist.api.__all__, "__version__"}
    assert "merge_lora(model" in pydoc.render_doc(lora_mnist, renderer=pydoc.plaintext)
