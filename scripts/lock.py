"""Write locks/requirements*.txt: the release of each package, with the hashes of its files.

    pip install uv && python scripts/lock.py

uv chooses for every system and Python that pyproject.toml allows, in the releases of
locks/constraints.txt, and takes the hashes of their files from the package index. hatchling, which
builds the project itself, is among them.
"""

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
#: The requirements of the project alone, and with the extra dev.
FILES: dict[str, list[str]] = {
    "locks/requirements.txt": [],
    "locks/requirements-dev.txt": ["--extra=dev"],
}
HEAD = """\
# Made by scripts/lock.py. To install exactly this, and nothing that has changed since:
#   pip install --require-hashes -r {name}
#   pip install --no-deps --no-build-isolation -e .
"""


def main() -> int:
    for name, extras in FILES.items():
        options = ["--universal", "--generate-hashes", "--no-annotate", "--no-header"]
        options += ["--no-strip-extras", "--constraints=locks/constraints.txt"]
        sources = ["pyproject.toml", "-"]
        done = subprocess.run(
            ["uv", "pip", "compile", "--quiet", "--no-config", *options, *extras, *sources],
            cwd=PROJECT,
            input="hatchling>=1.27",
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            return 1
        (PROJECT / name).write_text(HEAD.format(name=name) + done.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
