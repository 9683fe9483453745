"""A folder belongs to what a job computes: its name, its hash."""

import os

import pytest
from helpers.sweeping import write_job
from omegaconf import OmegaConf

from lora_mnist.disk.files import write_json
from lora_mnist.errors import UserError
from lora_mnist.sweep.jobs import job_folder, job_hash, read_jobs, sweep_folder

TASK = {"stage": "lora", "lora": {"rank": 1, "scaled": "${.rank}"}, "digit": 9, "base_ckpt": None}


def config(**changes):
    return OmegaConf.create({**TASK, **changes})


def test_the_hash_is_of_what_a_job_computes():
    same = job_hash(config())
    assert len(same) == 12
    assert job_hash(OmegaConf.create(dict(reversed(list(config().items()))))) == same
    assert job_hash(config(hydra={"run": {"dir": "x"}}, paths={"root": "/somewhere"})) == same
    assert job_hash(config(logger={"csv": {"name": "x"}}, figures=True)) == same
    assert job_hash(config(sweep={"metric": "val.loss"})) == same
    changed = [{"digit": 8}, {"digit": "9"}, {"lora": None}]
    assert len({same, *(job_hash(config(**change)) for change in changed)}) == 4


def test_the_hash_is_of_the_base_that_a_job_starts_from(tmp_path):
    file = tmp_path / "base.ckpt"
    hashes = [job_hash(config(base_ckpt=str(file)))]
    for content in (b"1", b"12"):
        file.write_bytes(content)
        hashes.append(job_hash(config(base_ckpt=str(file))))
    assert len(set(hashes)) == 3
    os.utime(file, ns=(1, 1))  # another time, the same content
    assert job_hash(config(base_ckpt=str(file))) == hashes[-1]
    # A pretraining makes a base.
    made = job_hash(config(base_ckpt=str(file), stage="pretrain"))
    file.unlink()
    assert job_hash(config(base_ckpt=str(file), stage="pretrain")) == made


def swept(sweep, *overrides):
    hydra = {"sweep": {"dir": str(sweep)}, "overrides": {"task": list(overrides)}}
    return config(hydra=hydra)


def test_a_job_is_named_by_what_was_swept(tmp_path):
    write_json(tmp_path / "sweep.json", {"swept": ["lora.rank", "net.act", "a"]})
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
    for name in ("b", "a", "c"):
        write_json(tmp_path / name / "sweep.json", {"swept": []})
    for i, name in enumerate(("b", "a")):  # c came to no job
        os.utime(write_job(tmp_path / name, "job", []) / "job.json", ns=(i, i))
    assert sweep_folder(new, "latest") == f"{tmp_path}/a"
    assert sweep_folder(new, f"{tmp_path}/c") == f"{tmp_path}/c"
    for resume in ("latest", f"{tmp_path}/d"):
        with pytest.raises(UserError, match=rf"^sweep\.resume={resume}: expected the folder"):
            sweep_folder(f"{tmp_path}/b/new/x", resume)


def test_a_key_that_only_a_later_command_sweeps(tmp_path):
    write_job(tmp_path, "a", ["lora.rank=1"])
    write_job(tmp_path, "b", ["lora.rank=1", "lora.alpha=8", "figures=true"])
    assert [job.swept for job in read_jobs(tmp_path)] == [{"lora.alpha": ""}, {"lora.alpha": "8"}]
