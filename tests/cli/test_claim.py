"""The folder of a run or of a sweep: whose it is before Hydra writes into it."""

import pytest
from helpers.commands import list_files
from helpers.sweeping import TOY, write_job


@pytest.mark.parametrize("sweep", [(), ("-m",)])
@pytest.mark.parametrize(("key", "name"), [("outputs", "outputs"), ("bases", "outputs/base")])
def test_a_file_is_no_folder_for_what_is_written(cli, tmp_path, sweep, key, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    done = cli(TOY, *sweep, "x=1")
    assert (done.code, done.out) == (2, "")
    assert done.err == f"paths.{key}={tmp_path}/{name}: expected a folder, not a file\n"


@pytest.mark.parametrize(
    ("function", "sweep", "jobs"),
    [("refuse_used_folder", (), []), ("close_sweep", ("-m", "x=1"), ["finished jobs: 1"])],
)
def test_a_bug_in_a_callback_of_hydra_is_no_warning(cli, monkeypatch, function, sweep, jobs):
    monkeypatch.setattr(f"lora_mnist.cli.claim.{function}", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught:
        cli(TOY, *sweep)
    notes = getattr(caught.value, "__notes__", [])
    assert [note.partition(",")[0] for note in notes] == jobs


@pytest.mark.parametrize(("key", "sweep"), [("run", ()), ("sweep", ("-m", "x=1"))])
def test_an_interrupt_before_a_folder_is_claimed_leaves_it_alone(
    cli, monkeypatch, tmp_path, key, sweep
):
    """It may be that of another sweep, whose jobs are still being run."""
    write_job(tmp_path / "theirs", "0", ["x=1"], accuracy=0.5)
    before = list_files(tmp_path)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lora_mnist.cli.claim._refuse_start", interrupted)
    done = cli(TOY, *sweep, f"hydra.{key}.dir={tmp_path}/theirs")
    assert (done.code, done.err) == (130, "interrupted by SIGINT\n")
    assert list_files(tmp_path) == before


@pytest.mark.parametrize(
    ("key", "name", "sweep"),
    [
        ("run", "checkpoints/last.ckpt", ()),
        ("run", ".hydra/config.yaml", ()),  # another run
        ("run", "anything.txt", ()),
        ("sweep", "0/results.json", ("-m",)),
    ],
)
def test_files_of_ones_own_are_never_replaced(cli, tmp_path, key, name, sweep):
    file = tmp_path / "mine" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    folder = f"hydra.{key}.dir={tmp_path}/mine"
    done = cli(TOY, *sweep, folder)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"{folder}: ")
    assert list_files(tmp_path) == {file: b"mine"}
