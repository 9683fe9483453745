from helpers.commands import only_run


def test_a_run_leaves_what_is_listed(made):
    """Beside what its two loggers leave."""
    names = {path.name for path in only_run(made, "lora").iterdir()}
    listed = {"results.json", "predictions.csv", "report.html", "figures", "adapter", "checkpoints"}
    assert names - listed == {"csv", "target=9,rank=1"}
