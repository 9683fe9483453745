"""Write locks/requirements.txt: the release of each package, with the hashes of its files.

    pip install uv && python scripts/lock.py

The extra dev is among them, and hatchling, which builds the project itself. uv chooses for every
system and Python that pyproject.toml allows, in the releases of locks/constraints.txt, and takes
the hashes from the package index.
"""

import subprocess
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
HEAD = """\
# Made by scripts/lock.py. To install exactly this, and nothing that has changed since:
#   pip install --require-hashes -r locks/requirements.txt
#   pip install --no-deps --no-build-isolation -e .
"""


def main() -> None:
    options = "--universal --generate-hashes --no-annotate --no-header --no-strip-extras --quiet"
    sources = "--no-config --extra=dev --constraints=locks/constraints.txt pyproject.toml -"
    locked = subprocess.run(
        ["uv", "pip", "compile", *options.split(), *sources.split()],
        cwd=PROJECT,
        input="hatchling>=1.27",
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    (PROJECT / "locks" / "requirements.txt").write_text(HEAD + locked.stdout)


if __name__ == "__main__":
    main()
