"""The plan of the house: which room may ask which, and that every room can be found.

Imports run downhill only::

    train.py eval.py predict.py export.py demo.py report.py
      entry                                     loads the next line by name
        train evaluate predict export demo report
          build load trainer trainer_settings checkpoint resume results show side_by_side
            module data base weights_file
              metrics loss net lora answers
                runs
                  files errors project cache process

``lora`` and ``sweep`` stand apart: each could be carried into another project.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from helpers.commands import ROOT

import lora_mnist

SOURCE = ROOT / "src" / "lora_mnist"
MODULES = sorted(p for p in SOURCE.rglob("*.py") if p.name != "__init__.py")
ENTRIES = {
    **{name: name for name in ("train", "predict", "export", "demo", "report")},
    "eval": "evaluate",
}

LAYERS = [
    {"train", "evaluate", "predict", "export", "demo", "report"},
    {"build", "load", "trainer", "trainer_settings", "checkpoint", "resume", "results", "show"}
    | {"side_by_side"},
    {"module", "data", "base", "weights_file"},
    {"metrics", "loss", "net", "lora", "answers"},
    {"runs"},
    {"files", "errors", "project", "cache", "process"},
]
#: What these rooms may import, and nothing else of ours.
APART = {
    "lora": {"files"},
    "sweep": {"errors", "files"},
    "entry": {"sweep", "runs", "errors", "files", "process", "project"},
    "show": {"answers", "lora", "sweep", "errors", "files"},
    "answers": {"files"},
    "data": {"errors", "files"},
    "runs": {"errors", "files"},
    "files": set(),
    "errors": set(),
    "project": set(),
    "cache": set(),
    "process": set(),
}
#: Who may ask what handles an interrupt and says how to go on: it reaches single runs as well.
OF_INTERRUPTS = {"checkpoint", "resume"}
#: Who may ask the sweep's bookkeeping.
OF_SWEEPS = {"entry", "show", "sweep", *OF_INTERRUPTS}
HEAVY = {"torch", "torchvision", "torchmetrics", "lightning", "safetensors"}


def name_of(path: Path) -> str:
    """``lora.layer`` of ``src/lora_mnist/lora/layer.py``, ``lora`` of its ``__init__.py``."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Full names of all that a file imports, also within functions; not for type checkers only."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ["lora_mnist", *path.relative_to(SOURCE).parts[:-1]] if node.level else []
            start = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def ours(path: Path) -> set[str]:
    """The modules of this project that a file imports: ``lora.layer``, ``files``."""
    known = {name_of(p) for p in SOURCE.rglob("*.py")} - {"", "__init__"}
    found = {name.removeprefix("lora_mnist.") for name in imports(path)}
    return (found & known) - {name_of(path)}


def room(module: str) -> str:
    return module.partition(".")[0]


ROOMS = {room(name_of(path)) for path in MODULES}


def test_every_room_has_its_place_in_the_plan() -> None:
    assert {"entry", "sweep"}.union(*LAYERS) == ROOMS


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_run_downhill(path: Path) -> None:
    here = room(name_of(path))
    asked = {room(module) for module in ours(path)} - {here}
    if here in APART:
        assert asked <= APART[here]
        return
    level = next(n for n, layer in enumerate(LAYERS) if here in layer)
    if here in OF_INTERRUPTS:
        of_sweeps = {module for module in ours(path) if room(module) == "sweep"}
        assert of_sweeps <= {"sweep", "sweep.interrupt", "sweep.command"}
        asked -= {"sweep"}
    assert asked <= set().union(*LAYERS[level:])
    if level == 0:
        assert not asked & LAYERS[0], "commands know nothing of each other"


def test_sweeps_are_asked_by_few() -> None:
    asking = {room(name_of(path)) for path in MODULES if "sweep" in {*map(room, ours(path))}}
    assert asking <= OF_SWEEPS


def test_there_is_no_circle() -> None:
    arrows = {name_of(path): ours(path) for path in SOURCE.rglob("*.py")}
    arrows.pop("__init__", None)
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module not in done:
            for other in sorted(arrows[module]):
                visit(other, (*way, module))
            done.add(module)

    for module in arrows:
        visit(module, ())


def test_lora_needs_torch_and_safetensors_alone() -> None:
    paths = [path for path in SOURCE.rglob("*.py") if room(name_of(path)) == "lora"]
    roots = {name.partition(".")[0] for path in paths for name in imports(path)}
    assert roots - set(sys.stdlib_module_names) == {"torch", "safetensors", "lora_mnist"}


@pytest.mark.parametrize("path", [p for p in MODULES if "sweep" in p.parts], ids=name_of)
def test_sweeps_need_no_torch(path: Path) -> None:
    assert not {name.partition(".")[0] for name in imports(path)} & HEAVY


def test_conducting_a_sweep_imports_no_torch() -> None:
    """Neither directly nor through anything else: that would cost every command seconds."""
    names = [f"lora_mnist.{name_of(path)}" for path in MODULES if "sweep" in path.parts]
    names += ["lora_mnist", "lora_mnist.entry"]
    names += [f"lora_mnist.show.{name}" for name in ("screen", "sweep_report", "verdict")]
    program = f"""
import sys
from importlib import import_module
for name in {names}:
    import_module(name)
print(*sorted({HEAVY} & set(sys.modules)))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("entry", ENTRIES)
def test_entries_have_one_shape(entry: str) -> None:
    path = ROOT / f"{entry}.py"
    tree = ast.parse(path.read_text())
    assert {name.partition(".")[0] for name in imports_of_script(tree)} <= {
        *("hydra", "omegaconf", "lora_mnist"),
    }
    assert {n for n in imports_of_script(tree) if "lora_mnist" in n} == {"lora_mnist.entry"}
    (command,) = [
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "run_job"
    ]
    assert command == ENTRIES[entry]
    assert callable(getattr(import_module(f"lora_mnist.{command}"), command))
    assert (ROOT / "configs" / f"{entry}.yaml").is_file()
    assert body_of("train") == body_of(entry)


def body_of(entry: str) -> str:
    """An entry without its first lines, which say what it is for, and without its own names."""
    text = (ROOT / f"{entry}.py").read_text().partition('"""\n')[2]
    return re.sub(r'(config_name=|run_job\()"\w+"', r"\1...", text)


def imports_of_script(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_every_module_has_its_tests() -> None:
    expected = [
        path.relative_to(SOURCE).with_name(f"test_{path.name}")
        for path in MODULES
        if path.name != "_version.py"
    ]
    assert [str(path) for path in expected if not (ROOT / "tests" / path).is_file()] == []


def test_no_file_needs_a_second_look() -> None:
    files = [*SOURCE.rglob("*.py"), *(ROOT / "scripts").rglob("*.py"), *ROOT.glob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > 300} == {}
    assert not [path for path in files if "util" in path.stem or "util" in path.parent.name]


def test_public_names_are_there() -> None:
    assert sorted(lora_mnist.__all__) == lora_mnist.__all__
    for name in lora_mnist.__all__:
        assert getattr(lora_mnist, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'nope'"):
        lora_mnist.nope  # noqa: B018
