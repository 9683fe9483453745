"""A script whose extra is missing says in one line what to install."""

from pathlib import Path

import pytest
from helpers.commands import run_process


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "package", "extra"),
    [
        ("adapter_tour.py", "peft", "peft"),
        ("benchmark/run.py", "peft", "bench"),
    ],
)
def test_a_missing_extra_is_one_line(script: str, package: str, extra: str, tmp_path: Path) -> None:
    # What Python itself says where a package is not installed.
    error = f"ModuleNotFoundError(\"No module named '{package}'\", name='{package}')"
    (tmp_path / f"{package}.py").write_text(f"raise {error}\n")
    folder = ["--folder", f"{tmp_path}/tour"] if script == "adapter_tour.py" else []
    done = run_process(f"scripts/{script}", *folder, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2, done.stderr
    assert done.stderr == (
        f"scripts/{script}: the package {package} is missing; "
        f'expected the extra {extra}: pip install -e ".[{extra}]"\n'
    )
