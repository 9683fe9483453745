"""What Hydra says of an error, and the line that is made of it."""

import pytest

NO_GROUP = "nothing reads this group here"
STAGES = "Could not find 'stage/nope' Available options in 'stage': lora pretrain"
OWN_FILE = "expected --config-dir FOLDER, and your file FOLDER/classifier/NAME.yaml"


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("train.py stage=nope", f"In 'train': {STAGES}"),
        ("export.py out=${nope}", "out: Interpolation key 'nope' not found"),
        ("eval.py classifier=photos", f"classifier: {OWN_FILE}"),
        ("export.py logger=none", f"logger: {NO_GROUP}"),
        ("export.py ~logger", f"logger: {NO_GROUP}"),
    ],
)
def test_hydras_words(cli, tmp_path, command, line):
    """Each line depends on words of Hydra 1.3 that stand in explain.py."""
    done = cli(*command.split(), here=tmp_path)
    assert (done.code, done.out, done.err) == (2, "", f"{line}\n")
