"""Every command in the documents works as it is printed: bash reads it, Hydra composes it.

A real bash takes the command apart, with ``failglob`` set, so that a bracket that zsh would refuse
is refused here too. Settings that stand alone, such as those of a table, have to suit a command.
"""

import re
import subprocess
import tomllib

import pytest
from composed import FEW, SMALL, composed
from helpers.commands import ROOT
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

import lora_mnist.cli.main  # noqa: F401 the resolvers that the configurations need

DOCUMENTS = ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
#: The folder with the example's file, classifier/photos.yaml.
EXAMPLE = ROOT / "examples" / "own_classifier"
PROGRAMS = ("python", "lora-mnist", "pip", "pytest", "tensorboard", "pre-commit")
ENTRIES = {f"{name}.py": name for name in ("train", "eval", "predict", "export", "demo")}
#: The first repair of README.
REPAIR = ("experiment=repair", "digit=weakest")
SETTING = re.compile(r"'?[+~]?[a-z_]+[\w./@]*=\S")

# Programs that write down what they were given instead of doing it.
STUBS = f"""
shopt -s failglob
record() {{ printf '%s\\0' "$@"; printf '\\1\\0'; }}
for name in {" ".join(PROGRAMS)} settings; do
    eval "$name() {{ record $name \\"\\$@\\"; }}"
done
"""


def commands(document):
    """What a reader can paste: lines of shell blocks, and inline code that is a command."""
    text = (ROOT / document).read_text()
    found = []
    for block in re.findall(r"```(?:bash|sh|zsh)\n(.*?)```", text, flags=re.DOTALL):
        found += [line for line in block.splitlines() if line.strip()]
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for span in re.findall(r"`([^`]+)`", prose):
        span = " ".join(span.split()).replace("\\|", "|")
        if span.startswith(tuple(f"{name} " for name in (*PROGRAMS, "eval"))):
            found.append(span)
        elif SETTING.match(span) and "..." not in span:
            found.append(f"settings {span}")
    return list(dict.fromkeys(found))


#: Each command, and the first document that has it.
ALL = {command: name for name in reversed(DOCUMENTS) for command in commands(name)}


def arguments(command):
    """The programs that bash would start for ``command``, each with its arguments."""
    # What eval and $(...) print is a matter of the shell: the command inside counts.
    command = re.sub(r'^eval "\$\((.*)\)"$', r"\1", command)
    done = subprocess.run(
        ["bash", "-c", STUBS + command], cwd="/", capture_output=True, text=True, check=True
    )
    return [call.strip("\0").split("\0") for call in done.stdout.split("\1\0") if call.strip("\0")]


def one_of_each(overrides):
    """The first job of a sweep."""
    loader = GlobalHydra.instance().config_loader()
    first = []
    for override in OverridesParser.create(config_loader=loader).parse_overrides(overrides):
        if override.is_discrete_sweep():
            value = next(iter(override.sweep_string_iterator()))
            first.append(f"{override.get_key_element()}={value}")
        elif not override.is_sweep_override():
            first.append(override.input_line)
    return first


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("command", ALL)
def test_documented_command(command):
    calls = arguments(command)
    assert calls, f"bash started nothing for: {command}"
    for program, *given in calls:
        try:
            if program == "pip":
                for extras in re.findall(r"(?:\.|FILE\.whl)\[(.*)\]", " ".join(given)):
                    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
            elif program == "python":
                check_python(given)
            elif program == "lora-mnist":
                check_python([f"{given[0]}.py", *given[1:]])
            elif program == "settings":
                check_settings(given)
        except MissingConfigException as error:
            if error.missing_cfg_file.startswith("hydra/"):  # a plugin's, which an extra brings
                pytest.skip(f"{error.missing_cfg_file} is not installed")
            raise


def check_settings(given):
    """They have to suit a command."""
    own = ["train.py", "stage=lora", "data=folder", "net=custom"]
    for command in (["train.py", "stage=lora"], ["train.py"], ["eval.py"], ["predict.py"], own):
        try:
            check_python([*command, *given])
        except (ConfigCompositionException, OmegaConfBaseException) as error:
            refused = error
        else:
            return
    raise refused


def check_python(given):
    script, *rest = given
    if script == "-m":
        return
    assert (ROOT / script).is_file(), f"no such script: {script}"
    if script not in ENTRIES:
        return
    if "--config-dir" in rest:
        rest = [a.replace("classifier=", "classifier@_global_=") for a in rest if a != "."]
        rest = [f"hydra.searchpath=[{EXAMPLE}]" if a == "--config-dir" else a for a in rest]
    flags = [a for a in rest if a.startswith("-")]
    assert set(flags) <= {"-m", "--help", "-sc"}, flags
    if "-sc" in flags:
        return
    overrides = [a for a in rest if a not in flags]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        overrides = one_of_each(overrides)
        if any(key.startswith(("launcher", "hydra.sweeper")) for key in overrides):
            compose(ENTRIES[script], overrides, return_hydra_config=True)
            return
    composed(ENTRIES[script], *overrides)


@pytest.mark.slow
def test_the_readme_from_the_first_command_to_the_last(cli, tmp_path):
    """In its order, as bash reads it, on a small network and few images, with few steps.

    The example has a test of its own, and so have sweeps, ONNX, the page and a hotfix.
    """
    (tmp_path / "my").mkdir()
    Image.linear_gradient("L").save(tmp_path / "my" / "one.png")
    run = []
    for command in commands("README.md"):
        if not re.search(" -m |--|onnx|demo|mistakes", command):
            run += [call[1:] for call in arguments(command) if call[1:2] and call[1] in ENTRIES]
    assert run[:2] == [["train.py", "stage=pretrain"], ["train.py", *REPAIR]]
    assert ["eval.py", "adapter=latest"] in run
    for entry, *given in run:
        more = [SMALL[0], FEW[0]]
        if given == ["stage=pretrain"]:  # whose record says to the others how many are held out
            more += FEW[1:]
        if entry in ("train.py", "eval.py"):
            more += SMALL[1:]
        if entry == "train.py":
            more.append(f"trainer.max_steps={100 if 'stage=pretrain' in given else 2}")
        done = cli(entry, *given, *more, here=tmp_path)
        assert done.code == 0, f"{entry} {given}\n{done.err}"
        assert done.out, given
    assert {path.name for path in tmp_path.iterdir()} == {"outputs", "my"}
