"""How much of this project runs before the first gradient step of a command.

    python scripts/benchmark/first_step.py train.py stage=lora digit=9

Runs the command in this process, ends it with its first optimizer step, and prints which functions
of ``lora_mnist`` have run until then: what somebody has to read who wants to know how training
begins. Nothing is left behind: folders are temporary.
"""

import inspect
import os
import runpy
import shutil
import sys
from pathlib import Path
from tempfile import mkdtemp
from types import CodeType, FrameType
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

PROJECT = Path(__file__).resolve().parents[2]
SOURCE = PROJECT / "src" / "lora_mnist"


def main() -> None:
    folder = mkdtemp()
    codes: set[CodeType] = set()

    def remember(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(SOURCE)):
            codes.add(frame.f_code)

    def stop(*_: Any) -> None:
        sys.setprofile(None)
        shutil.rmtree(folder, ignore_errors=True)
        functions = set()
        for code in codes:
            # Neither the bodies of modules and classes, nor lambdas and comprehensions.
            if code.co_flags & inspect.CO_OPTIMIZED and not code.co_name.startswith("<"):
                place = Path(code.co_filename).relative_to(SOURCE)
                functions.add(f"{place}:{code.co_firstlineno} {code.co_qualname}")
        print("\n".join(sorted(functions)))
        modules = {function.partition(":")[0] for function in functions}
        print(f"{len(functions)} functions in {len(modules)} modules", flush=True)
        os._exit(0)

    register_optimizer_step_post_hook(stop)
    sys.path.insert(0, str(PROJECT / "src"))
    sys.argv = [*sys.argv[1:], f"hydra.run.dir={folder}/run"]
    sys.setprofile(remember)
    runpy.run_path(str(PROJECT / sys.argv[0]), run_name="__main__")


if __name__ == "__main__":
    main()
