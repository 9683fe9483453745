from pathlib import Path

import pytest
from helpers.sweeping import start


class Done:
    """A sweep of four jobs that a process of its own has run: two finish, two fail."""

    def __init__(self, tmp_path: Path) -> None:
        process = start(tmp_path, "-m", "x=0,-1,2,3", "note='a b'")
        self.out, self.err = process.communicate(timeout=120)
        self.code = process.returncode
        (self.folder,) = (tmp_path / "outputs" / "multirun").iterdir()


@pytest.fixture(scope="session")
def four_jobs(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return Done(tmp_path_factory.mktemp("four"))
