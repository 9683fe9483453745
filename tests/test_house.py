"""Which module imports which: downhill only, and heavy packages only where they are needed."""

import ast
import pydoc
import sys
from importlib.util import resolve_name

import pytest
from helpers.commands import ROOT

import lora_mnist
import lora_mnist.api

SOURCE = ROOT / "src" / "lora_mnist"
#: Rooms and files of the package. Each imports those of the lines below it, and none beside it.
HOUSE = [
    "__main__",
    "commands",
    "training cli api",
    "show",
    "config",
    "classifier",
    "data measure",
    "choice run_paths",
    "errors",
    "project progress",
    "lora",  # with files.py beside it, it can be copied into another project
    "files",
]
HEAVY = {"lightning", "torchmetrics", "matplotlib", "jinja2", "gradio"}
#: What a module does not wait for: sweeps not for torch, pictures not for Lightning.
LATE = {name: {"torch"} for name in ("cli.main", "show.summary", "config.keys", "config.run")}
LATE |= dict.fromkeys(("commands.predict", "commands.export", "commands.demo"), HEAVY)
LATE["api"] = {"hydra", "omegaconf", "scipy", *HEAVY}


def find_imports(path, at_once=False):
    """The modules that a file imports; ``at_once``: not those that its functions import."""
    modules, tree = [], ast.parse(path.read_text())
    package = ".".join(path.parent.relative_to(SOURCE.parent).parts)
    for node in tree.body if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            if module == "lora_mnist":
                modules += [f"lora_mnist.{alias.name}" for alias in node.names]
            else:
                modules.append(module)
    return modules


def find_room(module):
    """The room or the file of HOUSE to which a module such as ``lora_mnist.files`` belongs."""
    return module.removeprefix("lora_mnist.").partition(".")[0]


def test_imports_run_downhill():
    rows = {}
    for row, places in enumerate(HOUSE):
        rows |= dict.fromkeys(places.split(), row)
    uphill = []
    for path in set(SOURCE.rglob("*.py")) - {SOURCE / "__init__.py"}:
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        place = find_room(name)
        for module in find_imports(path):
            there = find_room(module)
            if not module.startswith("lora_mnist.") or there in (place, "__version__"):
                continue
            if rows[there] <= rows[place]:
                uphill.append(f"{name} imports {module}")
    assert uphill == []


@pytest.mark.parametrize("module", LATE)
def test_what_needs_no_heavy_package_does_not_wait_for_it(module):
    names, waiting = set(), [f"lora_mnist.{module}"]
    while waiting:
        name = waiting.pop()
        if name in names:
            continue
        names.add(name)
        path = SOURCE.parent / name.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name.startswith("lora_mnist.") and path.is_file():
            waiting += [name.rpartition(".")[0], *find_imports(path, at_once=True)]
    assert {name.partition(".")[0] for name in names} & LATE[module] == set()


def test_lora_imports_torch_safetensors_and_no_other_library():
    packages = set()
    for path in (SOURCE / "lora").glob("*.py"):
        packages |= {name.partition(".")[0] for name in find_imports(path)}
    assert packages - sys.stdlib_module_names == {"torch", "safetensors", "lora_mnist"}


def test_the_package_shows_its_functions():
    """To dir, to tab completion, and with their docstrings to help, though torch is loaded late."""
    assert set(dir(lora_mnist)) == {*lora_mnist.api.__all__, "__version__"}
    assert "merge_lora(model" in pydoc.render_doc(lora_mnist, renderer=pydoc.plaintext)
