"""A file of the user's own, ``classifier/photos.yaml``, which every command takes."""

from pathlib import Path

import pytest
from composed import composed
from helpers.commands import only_run, read_results, refused
from helpers.stranger import move_in

from lora_mnist.command import CLASSIFIER, Run, checked_copy
from lora_mnist.train import train

FILE = """
defaults:
  - override /data: folder
  - override /net: custom
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
TYPED = ("--config-dir", ".", "classifier=photos")


@pytest.fixture
def here(tmp_path, monkeypatch):
    folder = move_in(tmp_path, monkeypatch)
    (folder / "classifier").mkdir()
    (folder / "classifier" / "photos.yaml").write_text(FILE)
    return folder


def test_each_command_takes_what_it_has_of_the_file(cli, here):
    """Those that follow name it, and work as they are printed: options before all overrides."""
    done = cli("eval.py", *TYPED, "prepare.std=0.3", "figures=false", here=here).ok()
    results = read_results(only_run(here / "outputs", "eval"))
    assert results["overrides"][:2] == ["--config-dir=.", "classifier=photos"]
    assert (results["mean"], results["std"]) == (0.4, 0.3)
    assert "nothing reads" not in done.err
    cli("predict.py", *TYPED, "images=photos/emu/1.png", here=here).ok()


@pytest.mark.parametrize(
    ("change", "typed", "said"),
    [
        ("base_ckp: mine.pt", TYPED, "base_ckp: nothing reads this key; the nearest: base_ckpt"),
        ("data: folder", TYPED, "data: folder: expected its keys; a file chooses a group by 'def"),
        ("", ("classifier=photos",), "classifier: expected --config-dir FOLDER, with your file"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(cli, here, change, typed, said):
    Path("classifier", "photos.yaml").write_text(change)
    done = cli("predict.py", *typed, "images=photos", here=here)
    assert (done.code, done.err.startswith(said)) == (2, True), done.err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("batches: {repaly: 3}", "batches.repaly: nothing reads this key; the nearest: batches.r"),
        ("lora: {rnak: 3}", "lora.rnak: nothing reads this key; the nearest: lora.rank"),
        ("trainer: {max_stesp: 3}", "trainer: TypeError: Trainer.__init__() got an unexpected"),
        ("optimizer: {rl: 3}", "optimizer: "),
        ("data: {data_dir: photos, mean: 0.1}", "data.mean=0.1: expected prepare.mean"),
    ],
)
def test_a_misspelt_key_inside_a_file_is_refused(here, change, said):
    """Hydra compares what is typed with the keys that there are, and no file."""
    kept = FILE.replace("data:\n  data_dir: photos\n", "").replace("trainer:\n  max_steps: 2\n", "")
    if "data_dir" not in change:
        kept += "data: {data_dir: photos}\n"
    name = change.partition(":")[0]
    Path("classifier", f"{name}.yaml").write_text(f"{kept}{change}\n")
    chosen = ("hydra.searchpath=[file://.]", f"{CLASSIFIER}={name}", "stage=lora")
    options = ("logger=none", "paths.outputs=outputs", "prepare.mean=0.5")
    assert refused(train, composed("train", *chosen, *options), Run(here / "run")).startswith(said)


def test_each_command_takes_the_keys_that_it_has(tmp_path):
    """Of ``configs/local/default.yaml``, where nobody has typed them."""
    cfg = composed("predict", "+seed=3", "images=x.png")
    assert "seed" not in checked_copy(cfg, Run(tmp_path, typed=("images=x.png",)))
    said = refused(checked_copy, cfg, Run(tmp_path, typed=("+seed=3",)))
    assert said.startswith("seed: nothing reads this key with stage=predict")
