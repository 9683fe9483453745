"""A folder belongs to one configuration: its name, its hash, who may be in it."""

import os
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from helpers.sweeping import FEW, TOY, only_sweep, read_summary, snapshot, statuses
from omegaconf import DictConfig, OmegaConf

from lora_mnist.errors import UserError
from lora_mnist.sweep.folder import (
    claim,
    hydra_subfolder,
    job_folder,
    job_hash,
    key_of,
    make_or_exit,
    read_commands,
    resumed_folder,
    varied_overrides,
    write_commands,
)

TASK = {"lora": {"rank": 1, "scaled": "${.rank}"}, "digit": 9}


def config(inputs: Any = (), **changes: Any) -> DictConfig:
    return OmegaConf.create({**TASK, "sweep": {"inputs": list(inputs)}, **changes})


def test_the_hash_is_of_what_a_job_computes() -> None:
    same = job_hash(config())
    assert len(same) == 12
    assert int(same, 16)
    assert job_hash(OmegaConf.create(dict(reversed(list(config().items()))))) == same
    other = {"hydra": {"run": {"dir": "x"}}, "paths": {"root": "/somewhere"}}
    assert job_hash(config(**other)) == same
    ranked = config()
    ranked.sweep.metric = "val.loss"
    assert job_hash(ranked) == same
    changed = [{"digit": 8}, {"digit": "9"}, {"digit": [9]}, {"seed": 0}, {"lora": None}]
    assert len({same, *(job_hash(config(**change)) for change in changed)}) == 6


def test_the_hash_survives_what_json_cannot_say() -> None:
    odd = {"keys": {1: "a", "b": 2}, "missing": "???", "path": Path("x"), "raw": b"x"}
    assert job_hash(config(**odd)) == job_hash(config(**odd))


def test_the_hash_resolves_nothing_but_inputs(tmp_path: Path) -> None:
    broken = {"broken": "${oc.env:NO_SUCH_VARIABLE}"}
    assert job_hash(config(**broken)) != job_hash(config())
    assert job_hash(config(["${broken}"], **broken)) != job_hash(config(**broken))
    here, there = (config(["${base}"], base=f"{tmp_path}/{name}") for name in "ab")
    unmade = job_hash(here)
    for name in "ab":
        (tmp_path / name).write_text("the same")
    assert job_hash(here) != unmade
    assert job_hash(here) != job_hash(there)  # the configuration names another file


def test_the_hash_covers_the_content_of_inputs(tmp_path: Path) -> None:
    file, folder = tmp_path / "base.ckpt", tmp_path / "adapter"
    folder.mkdir()
    nested = {"path": str(folder), "weight": 0.5, "name": "nine"}
    inputs = [str(file), None, [str(folder), {"a": nested}], 3, ""]
    seen = {job_hash(config(inputs))}
    file.write_bytes(b"1")
    seen.add(job_hash(config(inputs)))
    file.write_bytes(b"12")
    seen.add(job_hash(config(inputs)))
    (folder / "model").write_bytes(b"1")
    seen.add(job_hash(config(inputs)))
    (folder / "deep").mkdir()
    (folder / "deep" / "model").write_bytes(b"1")
    seen.add(job_hash(config(inputs)))
    (folder / "deep" / "model").rename(folder / "deep" / "other")
    seen.add(job_hash(config(inputs)))
    nested["weight"] = 1.0
    seen.add(job_hash(config(inputs)))
    assert len(seen) == 7
    os.utime(file, ns=(1, 1))  # another time, the same content
    assert job_hash(config(inputs)) in seen


def test_inputs_start_where_the_command_was_given(tmp_path: Path) -> None:
    hydra = {"runtime": {"cwd": str(tmp_path)}}
    before = job_hash(config(["base.ckpt"], hydra=hydra))
    (tmp_path / "base.ckpt").touch()
    after = job_hash(config(["base.ckpt"], hydra=hydra))
    assert before != after
    assert after == job_hash(config([f"{tmp_path}/base.ckpt"], hydra=hydra))


def test_a_path_that_cannot_be_is_text() -> None:
    assert job_hash(config(["x" * 5000])) != job_hash(config(["\0"]))


def swept(sweep: Path, *overrides: str, fixed: tuple[str, ...] = ()) -> DictConfig:
    hydra = {
        "sweep": {"dir": str(sweep)},
        "overrides": {"task": list(overrides)},
        "job": {"config": {"override_dirname": {"exclude_keys": list(fixed)}}},
    }
    return config(hydra=hydra)


def test_a_job_is_named_by_what_was_swept(tmp_path: Path) -> None:
    overrides = ("stage=lora", "lora.rank=1", "+net.act='a/b c'")
    name = job_folder(_root_=swept(tmp_path, *overrides, fixed=("stage",)))
    assert name == f"lora.rank=1,+net.act=_a_b_c_-{job_hash(config())}"
    assert job_folder(_root_=swept(tmp_path, "a=1", fixed=("a",))) == job_hash(config())
    assert len(job_folder(_root_=swept(tmp_path, f"a={'x' * 500}"))) == 113


def test_a_later_command_finds_the_folder_of_an_earlier_one(tmp_path: Path) -> None:
    earlier = tmp_path / f"digit=9-{job_hash(config())}"
    earlier.mkdir()
    write_commands(tmp_path, ["python train.py -m digit=8,9"])
    assert job_folder(_root_=swept(tmp_path, "seed=0")).startswith("seed=0-")
    write_commands(tmp_path, [*read_commands(tmp_path), "python train.py -m seed=0,1"])
    assert job_folder(_root_=swept(tmp_path, "seed=0")) == earlier.name


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"commands": 3}', '{"commands": null}'])
def test_a_damaged_list_of_commands_is_an_empty_one(tmp_path: Path, content: str) -> None:
    assert read_commands(tmp_path) == []
    (tmp_path / "sweep.json").write_text(content)
    assert read_commands(tmp_path) == []


def test_nothing_is_written_to_a_finished_job(tmp_path: Path) -> None:
    from helpers.sweeping import write_job
    from hydra.types import RunMode

    hydra = {"mode": RunMode.MULTIRUN, "runtime": {"output_dir": f"{tmp_path}/a"}}
    root = config(hydra=hydra)
    assert hydra_subfolder(_root_=root) == ".hydra"
    folder = write_job(tmp_path, "a", [], accuracy=0.5)
    assert hydra_subfolder(_root_=root) is None
    (folder / "results.json").write_text("{")
    assert hydra_subfolder(_root_=root) == ".hydra"


def test_what_varies() -> None:
    root = swept(Path(), "stage=lora", "+a.b=1", "~c", fixed=("stage",))
    assert varied_overrides(root.hydra) == ["+a.b=1", "~c"]
    assert [key_of(text) for text in ("+a.b=1", "~c", "++d=e=f")] == ["a.b", "c", "d"]


def test_resume_names_a_sweep(tmp_path: Path) -> None:
    def resumed(text: str | None) -> Path | None:
        hydra = {"sweep": {"dir": f"{tmp_path}/new"}}
        return resumed_folder(OmegaConf.create({"hydra": hydra, "sweep": {"resume": text}}))

    assert resumed(None) is None
    with pytest.raises(UserError, match=r"^sweep\.resume=latest: expected a sweep in .*, found no"):
        resumed("latest")
    with pytest.raises(UserError, match=r"^sweep\.resume=/nowhere: no sweep; expected a folder"):
        resumed("/nowhere")
    for name in ("2026-02", "2026-01", "2026-03"):
        (tmp_path / name).mkdir()
    for name in ("2026-02", "2026-01"):
        write_commands(tmp_path / name, [])
    assert resumed("latest") == tmp_path / "2026-02"
    assert resumed(f"{tmp_path}/2026-01") == tmp_path / "2026-01"


def test_one_sweep_at_a_time_in_a_folder(tmp_path: Path) -> None:
    lock = claim(tmp_path / "a,b", resumed=False)
    with pytest.raises(UserError, match=r"^sweep\.resume=.*: another sweep is running there"):
        claim(tmp_path / "a,b", resumed=True)
    write_commands(tmp_path / "a,b", [])
    lock.release()
    with pytest.raises(UserError, match=r"holds another sweep; .*or sweep\.resume='.*a,b'$"):
        claim(tmp_path / "a,b", resumed=False)
    (tmp_path / "a,b" / ".stop").touch()
    claim(tmp_path / "a,b", resumed=True).release()
    assert not (tmp_path / "a,b" / ".stop").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_or_exit("key", tmp_path / "new", ".hydra")
    for folder, reason in (
        (tmp_path / "new", "holds another run"),
        (tmp_path / "file" / "new", "cannot be written (Not a directory)"),
    ):
        (tmp_path / "file").touch()
        with pytest.raises(SystemExit) as ended:
            make_or_exit("key", folder, ".hydra")
        assert ended.value.code == 2
        assert capsys.readouterr().err == f"key={folder}: {reason}; expected a new folder\n"


def test_another_sweep_in_the_folder(cli: Any, tmp_path: Path) -> None:
    sweep = tmp_path / "outputs" / "multirun" / "a"
    write_commands(sweep, [])
    with FileLock(sweep / ".lock"):
        done = cli(TOY, "-m", "seed=0,1", f"sweep.resume={sweep}")
    assert done.code == 2
    assert done.err == (
        f"sweep.resume={sweep}: another sweep is running there; expected one at a time\n"
    )
    done = cli(TOY, "-m", "seed=0,1", f"hydra.sweep.dir={sweep}")
    assert done.code == 2
    assert done.err == (
        f"hydra.sweep.dir={sweep}: holds another sweep; "
        f"expected a new folder, or sweep.resume={sweep}\n"
    )
    assert read_commands(sweep) == []


@pytest.mark.slow
def test_a_changed_grid_adds_and_touches_nothing(cli: Any, tmp_path: Path) -> None:
    assert cli(TOY, "-m", "x=1").code == 0
    sweep = only_sweep(tmp_path)
    (first,) = [path for path in sweep.iterdir() if path.is_dir()]
    before = snapshot(first)
    done = cli(TOY, "-m", "x=1,2", "sweep.resume=latest")
    assert done.code == 0, done.err
    assert "#0 x=1: finished before" in done.out
    assert done.out.count("finished before") == 1
    done = cli(TOY, "-m", "x=2", "seed=0,1", f"sweep.resume={sweep}")
    assert "#0 seed=0: finished before" in done.out
    assert done.out.count("finished before") == 1
    assert snapshot(first) == before
    # The default of a key that only the last command sweeps stands in the first one's row too.
    assert {(row["x"], row["seed"]) for row in read_summary(sweep)} == {
        *(("1", "0"), ("2", "0"), ("2", "1"))
    }


@pytest.mark.slow
def test_another_content_is_another_job(cli: Any, tmp_path: Path) -> None:
    arguments = (TOY, "-m", "x=1", f"input={tmp_path}/input", "sweep.resume=latest")
    assert cli(*arguments[:-1]).code == 0
    assert cli(*arguments).out.count("finished before") == 1
    (tmp_path / "input").write_text("1")
    assert cli(*arguments).out.count("finished before") == 0
    assert cli(*arguments).out.count("finished before") == 1
    assert statuses(only_sweep(tmp_path)) == ["finished"] * 2


@pytest.mark.slow
def test_another_base_is_another_job(cli: Any, base_ckpt: Path, tmp_path: Path) -> None:
    base = tmp_path / "base.ckpt"
    arguments = ("-m", *FEW, f"base_ckpt={base}", "lora.rank=1,2")
    done = cli("train.py", *arguments)
    assert done.code == 1
    assert "base.ckpt: no such file" in done.err
    base.write_bytes(base_ckpt.read_bytes())
    done = cli("train.py", *arguments, "sweep.resume=latest")
    assert done.code == 0, done.err
    # The failures for want of a base were made good, and are listed no more.
    assert statuses(only_sweep(tmp_path)) == ["finished"] * 2
