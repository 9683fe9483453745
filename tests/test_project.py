import os
import subprocess
import sys
from pathlib import Path

from composed import composed
from helpers.commands import ROOT
from omegaconf import OmegaConf

from lora_mnist.project import PROJECT


def test_is_the_folder_of_the_entries() -> None:
    assert PROJECT == ROOT
    assert (PROJECT / "train.py").is_file()
    assert OmegaConf.create({"root": "${lora_mnist.project:}"}).root == str(ROOT)


def test_paths_belong_to_the_project() -> None:
    cfg = composed("train", "stage=pretrain")
    assert cfg.data.data_dir == f"{ROOT}/data"
    assert cfg.base_ckpt == f"{ROOT}/outputs/base/mnist.ckpt"
    assert composed("eval").paths.outputs == f"{ROOT}/outputs"


def test_does_not_depend_on_where_a_command_is_started(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), "stage=lora", "--cfg", "job", "--resolve"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    cfg = OmegaConf.create(done.stdout)
    assert cfg.paths == {"root": str(ROOT), "data": f"{ROOT}/data", "outputs": f"{ROOT}/outputs"}
    assert not list(tmp_path.iterdir())


def test_without_a_checkout_the_project_is_where_one_stands(tmp_path: Path) -> None:
    package = tmp_path / "site-packages" / "lora_mnist"
    package.mkdir(parents=True)
    (package / "project.py").write_text((ROOT / "src/lora_mnist/project.py").read_text())
    work = tmp_path / "work"
    work.mkdir()
    command = [sys.executable, "-c", "import project; print(project.PROJECT)"]
    path = {**os.environ, "PYTHONPATH": str(package)}
    done = subprocess.run(command, cwd=work, env=path, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == work
