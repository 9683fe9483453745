"""What Hydra says of an error, and the line that is made of it."""

import re
import resource

import pytest
from composed import FEW, SMALL
from hydra.errors import MissingConfigException

from lora_mnist.cli.explain import explain

RECIPES = "expected one of cifar10, notebook, repair"
NO_GROUP = "this command has no such group of keys"
OWN_FILE = "expected --config-dir FOLDER, and your file FOLDER/classifier/photos.yaml"


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("train.py stage=nope", "stage=nope: expected one of lora, pretrain"),
        ("train.py -m experiment=reapir", f"experiment=reapir: {RECIPES}; the nearest is repair"),
        ("export.py out=${nope}", "out: Interpolation key 'nope' not found"),
        ("eval.py classifier=photos", f"classifier=photos: {OWN_FILE}"),
        ("eval.py --config-dir . classifier=a", "classifier=a: no such file: classifier/a.yaml"),
        ("export.py logger=none", f"logger: {NO_GROUP}"),
        ("export.py ~logger", f"logger: {NO_GROUP}"),
    ],
)
def test_hydras_words(cli, tmp_path, command, line):
    """Each line depends on words of Hydra 1.3 that stand in explain.py."""
    done = cli(*command.split(), here=tmp_path)
    assert (done.code, done.out, done.err) == (2, "", f"{line}\n")


@pytest.mark.parametrize("command_line", ["images=photos/test/a", "images=0", "adapter=latest"])
def test_a_folder_that_hydra_takes_for_a_group_is_named(cli, tmp_path, command_line):
    """Beside classifier/ it hides the key of the same name."""
    folder = tmp_path / command_line.partition("=")[0]
    folder.mkdir()
    done = cli("predict.py", "--config-dir", str(tmp_path), command_line, here=tmp_path)
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert str(folder) in done.err


def test_a_group_that_a_file_of_the_user_misspells_is_named(cli, tmp_path):
    (tmp_path / "classifier").mkdir()
    file = tmp_path / "classifier" / "photos.yaml"
    file.write_text("defaults:\n  - override /dataset: folder\n")
    done = cli("eval.py", f"--config-dir={tmp_path}", "classifier=photos", here=tmp_path)
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "classifier/photos.yaml: override /dataset: " in done.err


@pytest.mark.parametrize("place", [0, 1])
def test_the_value_of_an_option_is_no_override(cli, tmp_path, place):
    (tmp_path / "a=b" / "classifier").mkdir(parents=True)
    (tmp_path / "a=b" / "classifier" / "photos.yaml").write_text("base_ckpt: mine.pt\n")
    arguments = ["classifier=photos"]
    arguments[place:place] = ["--config-dir", "a=b"]
    done = cli("eval.py", *arguments, here=tmp_path)
    assert done.err.startswith("base_ckpt=mine.pt: no such file")


@pytest.mark.parametrize(
    ("plugin", "extra"),
    [
        *(("launcher/joblib", "sweep"), ("sweeper/optuna", "sweep")),
        *(("launcher/ray", "ray"), ("launcher/submitit_slurm", "slurm")),
    ],
)
def test_a_plugin_of_hydra_is_brought_by_one_extra(plugin, extra):
    line = explain(MissingConfigException("", f"hydra/{plugin}", ["basic"]))
    assert line.startswith(f"hydra/{plugin.replace('/', '=')}: ")
    assert re.findall(r"\[(.*?)\]", line) == [extra]


def test_a_disk_without_room_is_named_by_its_key_and_nothing_is_left(cli, outputs, tmp_path):
    """A limit of the size of a file stands for it."""
    out = tmp_path / "new" / "base.safetensors"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        base = f"base_ckpt={outputs}/base/mnist.ckpt"
        done = cli("export.py", base, SMALL[0], *FEW, f"out={out}", here=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert done.err.startswith(f"out={out} ")
    assert not out.parent.exists()
