"""What Hydra says of an error, and the line that is made of it."""

import re

import pytest
from hydra.errors import MissingConfigException

from lora_mnist.cli.explain import explain

RECIPES = "expected one of cifar10, notebook, repair"
NO_GROUP = "nothing reads this group here"
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
