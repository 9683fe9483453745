"""Which module imports which: downhill only, and heavy packages only where they are needed."""

import ast
import pydoc
import sys

from composed import small_net
from helpers.commands import ROOT, run_process

import lora_mnist
import lora_mnist.api
from lora_mnist import add_lora, save_adapter

SOURCE = ROOT / "src" / "lora_mnist"
#: Rooms and files of the package. Each imports those of the lines below it, and none beside it.
HOUSE = [
    "entry",
    "train evaluate predict export demo",
    "cli recipe results check_preprocessing",
    "session sweep api",
    "show trainer",
    "command",
    "classifier",
    "settings",
    "disk",
    "repair",
    "data",
    "lora",
    "disk.files",
    "errors project progress",
]


def place_of(module):
    """The room or the file of HOUSE to which a module such as ``disk.base`` belongs."""
    return module if module == "disk.files" else module.partition(".")[0]


def imports_of(path, at_once=False):
    """The modules that a file imports, ours as ``lora_mnist.disk.base``.

    ``at_once``: not those that its functions import, or the type checker alone.
    """
    modules, tree = [], ast.parse(path.read_text())
    for node in tree.body if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                package = path.relative_to(SOURCE.parent).parts[: -node.level]
                module = ".".join([*package, *filter(None, [module])])
            if module == "lora_mnist":
                modules += [f"lora_mnist.{alias.name}" for alias in node.names]
            else:
                modules.append(module)
    return modules


def test_imports_run_downhill():
    rows = {}
    for row, places in enumerate(HOUSE):
        rows |= dict.fromkeys(places.split(), row)
    uphill, seen = [], set()
    for path in set(SOURCE.rglob("*.py")) - {SOURCE / "__init__.py"}:
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        place = place_of(name)
        seen.add(place)
        for module in imports_of(path):
            package, _, below = module.partition(".")
            if package != "lora_mnist" or below == "__version__":
                continue
            there = place_of(below)
            if there != place and rows[there] <= rows[place]:
                uphill.append(f"{name} imports {below}")
    assert uphill == []
    assert seen == set(rows)


def test_lora_imports_torch_safetensors_and_no_other_library():
    """So it can be copied into another project, with disk/files.py beside it."""
    imported = set()
    for path in (SOURCE / "lora").glob("*.py"):
        imported |= set(imports_of(path))
    ours = {name for name in imported if name.startswith("lora_mnist.")}
    outside = {name for name in ours if not name.startswith("lora_mnist.lora.")}
    assert outside == {"lora_mnist.disk.files"}
    packages = {name.partition(".")[0] for name in imported - ours}
    assert packages - sys.stdlib_module_names == {"torch", "safetensors"}


def imported_with(module):
    """The libraries that are imported with a module of ours."""
    libraries, seen, waiting = set(), set(), [module]
    while waiting:
        name = waiting.pop()
        path = SOURCE.parent / name.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in seen or not path.is_file():
            continue
        seen.add(name)
        for each in imports_of(path, at_once=True):
            if each.startswith("lora_mnist"):
                waiting += [each, each.rpartition(".")[0]]
            else:
                libraries.add(each.partition(".")[0])
    return libraries


def test_what_needs_no_heavy_package_does_not_wait_for_it():
    """``--help`` and sweeps not for torch, and pictures not for Lightning, nor what draws."""
    for module in ("cli", "command", "sweep"):
        assert "torch" not in imported_with(f"lora_mnist.{module}")
    for module in ("predict", "export", "demo"):
        assert imported_with(f"lora_mnist.{module}") & {*TRAINING, *DRAWING} == set()


STEPS = """
import sys
from lora_mnist import load_classifier
classifier = load_classifier(*sys.argv[1:3])
assert len(classifier.predict(sys.argv[3:])[0].probabilities) == 10
print(*{name.partition(".")[0] for name in sys.modules})
"""
TRAINING = {"lightning", "pytorch_lightning", "torchmetrics"}
DRAWING = {"matplotlib", "jinja2", "gradio"}


def test_a_classifier_needs_neither_hydra_nor_lightning(outputs, tmp_path):
    """Though it is made of files and predicts."""
    record = {
        "version": 1,
        "net": {"_target_": "lora_mnist.MLP", "hidden_sizes": [16]},
        "data": {"_target_": "lora_mnist.data.MNIST"},
    }
    adapter = save_adapter(add_lora(small_net(outputs)), tmp_path / "adapter", metadata=record)
    files = (adapter, outputs / "base" / "mnist.ckpt", ROOT / "docs" / "repaired.png")
    done = run_process("-c", STEPS, *files)
    assert done.returncode == 0, done.stderr
    modules = set(done.stdout.split())
    assert "torchvision" in modules
    assert modules & {"hydra", "omegaconf", "scipy", *TRAINING, *DRAWING} == set()


def test_the_package_shows_its_functions():
    """To dir, to tab completion, and with their docstrings to help, though torch is loaded late."""
    assert set(dir(lora_mnist)) == {*lora_mnist.api.__all__, "__version__"}
    assert "merge_lora(model" in pydoc.render_doc(lora_mnist, renderer=pydoc.plaintext)
