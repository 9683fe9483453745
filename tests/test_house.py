"""Which module imports which: downhill only, and heavy packages only where they are needed."""

import pydoc
import re
import sys

from helpers.commands import ROOT

import lora_mnist
import lora_mnist.api

SOURCE = ROOT / "src" / "lora_mnist"
COMMANDS = {"train", "evaluate", "predict", "export", "demo"}
#: What each room may import of the others.
BELOW = {
    "errors": set(),
    "project": {"errors"},
    "progress": set(),
    "disk.files": set(),
    "classifier.significance": set(),
    "lora": {"disk.files"},
    "data": {"errors", "progress", "lora", "disk.files"},
    "disk": {"errors", "lora", "data", "classifier.significance"},
    "classifier": {"errors", "progress", "lora", "data", "disk"},
    "sweep": {"errors", "project", "disk", "classifier.significance"},
    "show": {"errors", "project", "lora", "disk", "sweep", "data", "classifier.significance"},
    "api": {"lora", "classifier", "classify"},
    "settings": {"errors", "project"},
    "adapters": {"errors", "project", "checks", "lora", "data", "disk", "classifier"},
    "classify": {"adapters", "data", "project", "settings"},
    "trainer": {"errors", "project", "checks", "data", "disk"},
    "checks": {"errors", "project", "data", "disk", "lora", "classifier"},
    "choices": {"errors", "project", "checks", "lora", "data", "disk", "classifier"},
    "learning_rate": {"data", "classifier"},
    "check_preprocessing": {"project", "data", "disk", "classifier"},
    "cli": {"errors", "project", "adapters", "disk", "sweep", "show"},
    "entry": {"cli", "project", *COMMANDS},
}


ROOMS = {"lora", "data", "disk", "classifier", "show", "sweep"}
STEPS = {
    "errors",
    "progress",
    "project",
    "settings",
    "adapters",
    "classify",
    "trainer",
    "check_preprocessing",
}
BELOW |= {key: {*ROOMS, *STEPS, "checks", "choices", "learning_rate"} for key in COMMANDS}


def test_imports_run_downhill():
    """Also within functions."""
    uphill = []
    for path in set(SOURCE.rglob("*.py")) - {SOURCE / "__init__.py"}:
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        room = name.partition(".")[0]
        allowed = BELOW[name if name in BELOW else room] | {room}
        text = path.read_text().replace("from lora_mnist import __version__", "")
        text = text.replace("lora_mnist import ", "lora_mnist.")
        imports = r"^ *(?:from|import) (?:lora_mnist\.|\.\.)(?: import )?([\w.]+)"
        for module in re.findall(imports, text, re.MULTILINE):
            if not {module, module.partition(".")[0]} & allowed:
                uphill.append(f"{name} imports {module}")
    assert uphill == []


def test_commands_that_draw_nothing_do_not_load_what_draws():
    """Neither figures, which need matplotlib, nor pages, which need jinja2."""
    loaded, to_read = set[str](), ["predict", "export"]
    while to_read:
        name = to_read.pop()
        loaded.add(name)
        path = SOURCE.joinpath(*name.split("."))
        text = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
        assert not re.search(r"^(?:from|import) (?:matplotlib|jinja2)", text, re.MULTILINE), name
        imports = re.findall(r"^(?:from|import) lora_mnist\.([\w.]+)", text, re.MULTILINE)
        to_read += {*imports} - loaded
    assert "show.tables" in loaded


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
