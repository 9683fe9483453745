"""A file of the user's own, ``classifier/photos.yaml``, which every command takes."""

import re
from pathlib import Path

import pytest
from composed import composed
from helpers.commands import ROOT, only_run, read_results, refused
from helpers.stranger import move_in
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lora_mnist.commands.train import train
from lora_mnist.config.keys import list_command_keys, resolve_configuration
from lora_mnist.config.run import CLASSIFIER, Run

FILE = """
defaults:
  - override /data: folder
  - override /net: custom
  - override /augment: [crop, flip]
data:
  data_dir: photos
prepare:
  mean: 0.4
  std: 0.2
net:
  _target_: nets_of_a_stranger.Net
base_ckpt: mine.pt
target: emu
trainer:
  max_steps: 2
"""
OWN_FILE = ("--config-dir", ".", "classifier=photos")


@pytest.fixture
def here(tmp_path, monkeypatch):
    folder = move_in(tmp_path, monkeypatch)
    (folder / "classifier").mkdir()
    (folder / "classifier" / "photos.yaml").write_text(FILE)
    return folder


def test_each_command_takes_what_it_has_of_the_file(cli, here):
    """Those that follow name it, and work as they are printed: options before all overrides."""
    done = cli("eval.py", *OWN_FILE, "prepare.std=0.3", "figures=false", here=here).ok()
    results = read_results(only_run(here / "outputs", "eval"))
    assert results["overrides"][:2] == ["--config-dir=.", "classifier=photos"]
    assert (results["mean"], results["std"]) == (0.4, 0.3)
    assert "nothing reads" not in done.err
    cli("predict.py", *OWN_FILE, "images=photos/emu/1.png", here=here).ok()


@pytest.mark.parametrize(
    ("change", "command_line", "said"),
    [
        ("base_ckp: mine.pt", OWN_FILE, "base_ckp: nothing reads this key; the nearest: base_ckpt"),
        ("data: folder", OWN_FILE, "data: folder: "),
        ("prepare:", OWN_FILE, "prepare: "),
        ("prepare: {men: 0.1}", OWN_FILE, "prepare.men: "),
        ("prepare:\n  mean: 0.4\n std: 0.2", OWN_FILE, 'while parsing a block mapping in "{file}"'),
        ("images: \a", OWN_FILE, "unacceptable character "),
        ("", ("classifier=photos",), "classifier=photos: expected --config-dir "),
        (
            "",
            (*OWN_FILE[:2], "classifier=other"),
            "classifier=other: no such file: classifier/other",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said(cli, here, change, command_line, said):
    """Hydra checks the keys of the command line, but not those of files."""
    file = here / "classifier" / "photos.yaml"
    file.write_text(change)
    done = cli("predict.py", *command_line, "images=photos", here=here)
    assert (done.code, done.err.startswith(said.format(file=file))) == (2, True), done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("group", "misspelt"),
    [
        *(("batches", "repaly: 3"), ("lora", "rnak: 3"), ("data", "mean: 0.1")),
        *(("trainer", "max_stesp: 3"), ("optimizer", "rl: 3")),
    ],
)
def test_a_misspelt_key_inside_a_file_is_refused(here, group, misspelt):
    """Also where a library takes the arguments."""
    file = FILE if f"{group}:" in FILE else f"{FILE}{group}:\n"
    file = file.replace(f"{group}:\n", f"{group}:\n  {misspelt}\n")
    Path("classifier", f"{group}.yaml").write_text(file)
    chosen = ("hydra.searchpath=[file://.]", f"{CLASSIFIER}={group}", "stage=lora", "logger=none")
    said = refused(train, composed("train", *chosen, "paths.outputs=outputs"), Run(here / "run"))
    assert said.startswith(group)


def test_keys_of_ones_own_are_taken_where_a_group_or_a_value_has_them():
    more = ("+callbacks.x.y=1", "+sweep.columns.rate=seed")
    cfg = composed("train", "stage=lora", *more, "+logger.tensorboard.prefix=a")
    given, left = map(OmegaConf.to_container, (cfg, resolve_configuration(cfg)))
    assert left == given


def test_each_command_takes_the_keys_that_it_has(tmp_path):
    """Keys of ``configs/local/default.yaml`` that the command line does not set."""
    cfg, images = composed("predict", "+seed=3", "images=x.png"), Run(tmp_path, ("images=x.png",))
    once = resolve_configuration(cfg, images)
    assert "seed" not in once
    assert resolve_configuration(once, images) == once
    assert refused(resolve_configuration, cfg, Run(tmp_path, command_line=("+seed=3",))).startswith(
        "seed: "
    )
    lora = composed("train", "stage=lora", "+adapter=latest")
    assert "adapter" not in resolve_configuration(lora, Run(tmp_path, command_line=("stage=lora",)))
    command_line = Run(tmp_path, command_line=("stage=lora", "+adapter=latest"))
    assert refused(resolve_configuration, lora, command_line).startswith(
        "adapter: nothing reads this key"
    )
    flipped = composed("eval", "augment=flip")
    assert "batches" not in resolve_configuration(
        flipped, Run(tmp_path, command_line=())
    )  # a file's
    assert refused(
        resolve_configuration, flipped, Run(tmp_path, command_line=("augment=flip",))
    ).startswith("augment: ")
    misspelt = composed("predict", "images=x.png")
    OmegaConf.update(misspelt, "batches", {"repaly": 3}, force_add=True)
    said = refused(resolve_configuration, misspelt, Run(tmp_path, command_line=()))
    assert said.startswith("batches.repaly: nothing reads this key")


def test_the_hydra_of_a_caller_is_left_as_it_was():
    list_command_keys.cache_clear()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("predict")
        resolve_configuration(cfg)
        assert compose("predict") == cfg


def test_the_file_of_the_readme_is_read(tmp_path):
    (file,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "classifier").mkdir()
    (tmp_path / "classifier" / "photos.yaml").write_text(file)
    for entry in ("eval", "predict", "export", "demo"):
        cfg = composed(entry, f"hydra.searchpath=[file://{tmp_path}]", f"{CLASSIFIER}=photos")
        assert resolve_configuration(cfg, Run(tmp_path, command_line=())).base_ckpt == "mine.pt"
