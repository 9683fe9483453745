from helpers.commands import only_run

from lora_mnist.run_paths import RUN_FILES


def test_a_run_leaves_what_is_listed(made):
    """Beside what its two loggers leave."""
    names = {path.name for path in only_run(made, "lora").iterdir()}
    assert names - {*RUN_FILES} == {"csv", "target=9,rank=1"}
