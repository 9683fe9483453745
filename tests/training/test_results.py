import pytest
from composed import adapter_of, run, small_base
from helpers.commands import only_run, read_results


def test_a_run_leaves_what_is_listed(made):
    """Beside what its two loggers leave."""
    names = {path.name for path in only_run(made, "lora").iterdir()}
    listed = {"results.json", "predictions.csv", "report.html", "figures", "adapter", "checkpoints"}
    assert names - listed == {"csv", "target=9,rank=1"}


def test_an_adapter_is_written_before_the_copy_of_its_base(tmp_path):
    """Which is much larger: here there is no place for it, as on a full disk."""
    base, bases = small_base(tmp_path), tmp_path / "bases"
    bases.touch()
    options = ("stage=lora", "target=9", f"base_ckpt={base}", f"paths.bases={bases}")
    with pytest.raises(FileExistsError, match="bases"):
        run(tmp_path / "outputs", *options)
    folder = only_run(tmp_path / "outputs", "lora")
    assert adapter_of(folder)
    assert read_results(folder)["adapter"] == "adapter"
    assert (folder / "predictions.csv").is_file()
