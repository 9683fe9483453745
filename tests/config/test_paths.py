"""``~`` is where the user is at home, wherever a path is typed or stands in a file of his own."""

import pytest
from composed import composed
from helpers.commands import ROOT, refused
from helpers.sweeping import TOY
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lora_mnist.classifier.classifier import Classifier
from lora_mnist.commands.predict import find_pictures
from lora_mnist.config.keys import resolve_configuration
from lora_mnist.data import Folder
from lora_mnist.run_paths import plan_run_folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "my home"))
    (tmp_path / "my home").mkdir()
    return tmp_path / "my home"


@pytest.mark.parametrize(
    ("entry", "keys"),
    [
        ("train", ("base_ckpt", "ckpt_path", "data.data_dir", "mistakes", "paths.outputs")),
        ("export", ("adapter", "out", "paths.bases")),
    ],
)
def test_a_command_finds_it(home, entry, keys):
    command_line = ("stage=lora", "digit=9") if entry == "train" else ()
    (home / "ckpt_path").touch()
    cfg = resolve_configuration(
        composed(entry, *command_line, *(f"{key}='~/{key}'" for key in keys))
    )
    for key in keys:
        assert OmegaConf.select(cfg, key) == f"{home}/{key}"
    if entry == "train":
        assert cfg.paths.bases == f"{home}/paths.outputs/base"


def test_pictures_and_files_are_found_from_python_too(home):
    (home / "one.png").touch()
    for images in ("~", "~/one.png", "~/*.png", OmegaConf.create(["~/one.png"])):
        assert find_pictures(images) == [home / "one.png"]
    assert refused(find_pictures, "~nobody/*.png").startswith("images=~nobody/*.png: ")
    assert refused(Classifier.load, base="~/mine.pt").startswith(f"base_ckpt={home}/mine.pt: ")
    assert Folder("~", classes=["a"], image_size=8, mean=0, std=1).data_dir == home
    assert plan_run_folder("~", "eval").parent == home / "eval"


@pytest.mark.parametrize(("key", "sweep"), [("run", ()), ("sweep", ("-m",))])
def test_hydra_makes_its_folders_there(cli, home, key, sweep):
    cli(TOY, *sweep, f"hydra.{key}.dir=~/mine").ok()
    assert (home / "mine").is_dir()
    assert not (ROOT / "~").exists()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("eval", ["paths.outputs='~/out'"], return_hydra_config=True)  # as in a file
    assert cfg.hydra[key].dir.startswith(f"{home}/out/")
