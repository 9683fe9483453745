"""A run's folder is data: what it names is not run because it is named there."""

import pytest
import yaml
from composed import FEW, SMALL, small_adapter, small_net
from PIL import Image

from lora_mnist import add_lora, save_adapter
from lora_mnist.disk.run_settings import foreign_code, read_run_settings

EVIL = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"


@pytest.mark.parametrize(
    ("settings", "foreign"),
    [
        ({"_target_": "lora_mnist.MLP", "hidden_sizes": [16], "data_dir": "${paths.data}"}, []),
        ({"_target_": "torchvision.models.resnet18", "num_classes": 3}, []),
        ({"_target_": "timm.create_model", "model_name": "vit"}, []),
        ({"_target_": "lora_mnist.data.FolderDataModule", "mean": [0.5]}, []),
        ({"_target_": "my_nets.Net"}, ["my_nets.Net"]),
        ({"_target_": "lora_mnist.cli.os.system"}, ["lora_mnist.cli.os.system"]),
        ({"_target_": "lora_mnist.MLP", "sizes": [{"_target_": "os.system"}]}, ["os.system"]),
        ({"sizes": "${oc.create:{_target_:os.system}}"}, ["${oc.create:{_target_:os.system}}"]),
    ],
)
def test_what_runs_code_is_found(settings, foreign):
    assert foreign_code(settings) == foreign


def test_code_that_a_run_names_is_run_only_where_it_is_trusted(cli, outputs, tmp_path):
    run = small_adapter(outputs, "lora/2026-a").parent
    assert read_run_settings(run) is None
    (run / ".hydra").mkdir()
    (tmp_path / "evil_net.py").write_text(EVIL + "from lora_mnist import MLP as Net\n")
    trained = {"net": {"_target_": "evil_net.Net", "hidden_sizes": [16]}, "base_name": "mnist"}
    trained["data"] = {"_target_": "lora_mnist.data.MNISTDataModule", "name": "mnist"}
    trained["data"] |= {
        "val_size": 500,
        "dataset": "MNIST",
        "data_dir": "${paths.data}",
        "mean": 0.5,
        "std": 0.5,
    }
    (run / ".hydra" / "config.yaml").write_text(yaml.safe_dump(trained))
    started = {"hydra": {"runtime": {"cwd": str(tmp_path)}}}
    (run / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(started))
    options = ("eval.py", "adapter=latest", "check=null", *SMALL[1:], FEW[0])
    done = cli(*options)
    assert done.code == 2
    assert "its run names evil_net.Net, which is code; expected trust=true" in done.err
    assert not (tmp_path / "ran").exists()
    assert cli(*options, SMALL[0]).code == 0  # the class is this command's; mean and std the run's
    assert not (tmp_path / "ran").exists()
    done = cli(*options, "trust=true").ok()
    assert (tmp_path / "ran").exists()


def test_the_file_of_an_adapter_runs_no_code(cli, outputs, tmp_path):
    copy = {"_target_": "shutil.copy", "src": str(outputs / "base" / "mnist.ckpt")}
    evil = {"image_size": {**copy, "dst": str(tmp_path / "ran")}}
    save_adapter(add_lora(small_net(outputs)), tmp_path / "evil", metadata={"preprocessing": evil})
    here = ("data=folder", "data.data_dir=null", "data.classes=[0,1]", "data.mean=0", "data.std=1")
    Image.new("L", (28, 28)).save(tmp_path / "x.png")
    here = (*here, SMALL[0], f"base_ckpt={copy['src']}", f"images={tmp_path}/x.png")
    done = cli("predict.py", f"adapter={tmp_path}/evil", *here)
    assert done.code == 2
    assert "its preprocessing has shutil.copy, which is code; expected plain values" in done.err
    assert not (tmp_path / "ran").exists()
