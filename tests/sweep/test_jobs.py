"""A folder belongs to one configuration: its name, its hash."""

import os

import pytest
from helpers.sweeping import write_job, write_sweep
from omegaconf import OmegaConf

from lora_mnist.errors import UserError
from lora_mnist.sweep.jobs import job_folder, job_hash, sweep_folder

TASK = {"lora": {"rank": 1, "scaled": "${.rank}"}, "digit": 9}


def config(inputs=(), **changes):
    return OmegaConf.create({**TASK, "sweep": {"inputs": list(inputs)}, **changes})


def test_the_hash_is_of_what_a_job_computes():
    same = job_hash(config())
    assert len(same) == 12
    assert job_hash(OmegaConf.create(dict(reversed(list(config().items()))))) == same
    assert job_hash(config(hydra={"run": {"dir": "x"}}, paths={"root": "/somewhere"})) == same
    assert job_hash(config(logger={"csv": {"name": "x"}}, figures=True)) == same
    ranked = config()
    ranked.sweep.metric = "val.loss"
    assert job_hash(ranked) == same
    changed = [{"digit": 8}, {"digit": "9"}, {"lora": None}]
    assert len({same, *(job_hash(config(**change)) for change in changed)}) == 4


def test_the_hash_covers_the_content_of_inputs(tmp_path):
    file, folder = tmp_path / "base.ckpt", tmp_path / "adapter"
    (folder / "deep").mkdir(parents=True)
    inputs = [str(file), None, [{"path": str(folder)}], 3, ""]
    hashes = [job_hash(config(inputs))]

    model = folder / "deep" / "model"
    for path, content in ((file, b"1"), (file, b"12"), (model, b"1")):
        path.write_bytes(content)
        hashes.append(job_hash(config(inputs)))
    model.rename(folder / "deep" / "other")
    hashes.append(job_hash(config(inputs)))
    assert len(set(hashes)) == 5
    (folder / ".half-written").write_bytes(b"1")
    os.utime(file, ns=(1, 1))  # another time, the same content
    assert job_hash(config(inputs)) == hashes[-1]


def test_the_hash_covers_the_pictures_to_train_on(tmp_path):
    """But not what torchvision unpacks beside its archives."""
    photos = config(data={"data_dir": str(tmp_path)})
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(b"1")
    before = job_hash(photos)
    (tmp_path / "cat" / "train-images-idx3-ubyte").write_bytes(b"1")
    os.utime(tmp_path / "cat" / "1.png", ns=(1, 1))
    assert job_hash(photos) == before
    (tmp_path / "cat" / "1.png").unlink()
    assert job_hash(photos) != before


def swept(sweep, *overrides):
    hydra = {"sweep": {"dir": str(sweep)}, "overrides": {"task": list(overrides)}}
    return config(hydra=hydra)


def test_a_job_is_named_by_what_was_swept(tmp_path):
    write_sweep(tmp_path, fixed=["stage"])
    digest = job_hash(config())
    name = job_folder(_root_=swept(tmp_path, "stage=lora", "lora.rank=1", "+net.act='a/b c'"))
    assert name == f"lora.rank=1,+net.act=_a_b_c_-{digest}"
    assert job_folder(_root_=swept(tmp_path, "stage=lora")) == digest
    assert len(job_folder(_root_=swept(tmp_path, f"a={'x' * 500}"))) == 113
    (tmp_path / name).mkdir()  # another command, which sweeps other keys, finds it
    assert job_folder(_root_=swept(tmp_path, "seed=0")) == name


def test_latest_is_the_sweep_that_ran_a_job_last(tmp_path):
    new = f"{tmp_path}/new"
    assert sweep_folder(new, None) == new
    for i, name in enumerate(("b", "a")):
        write_sweep(tmp_path / name)
        os.utime(write_job(tmp_path / name, "job", []) / "job.json", ns=(i, i))
    write_sweep(tmp_path / "c")  # came to no job
    assert sweep_folder(new, "latest") == f"{tmp_path}/a"
    assert sweep_folder(new, f"{tmp_path}/c") == f"{tmp_path}/c"
    for resume in ("latest", f"{tmp_path}/d"):
        with pytest.raises(UserError, match=rf"^sweep\.resume={resume}: expected the folder"):
            sweep_folder(f"{tmp_path}/b/new/x", resume)
