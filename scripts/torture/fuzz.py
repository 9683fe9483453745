"""Every key of every command with odd values: an exit code and a clear line, never a traceback.

    python scripts/torture/run.py --only fuzz

A case is one key of a command's configuration with one odd value. It survives if the command ends
with exit code 0, or with 1 or 2 and a message that names the key, leaves no half-written file, and
the base and the adapter that were there before still load. What trains on for too long is
interrupted as by Ctrl+C, and has to end at once.
"""

import re
import shutil
from collections import Counter
from pathlib import Path

from torture.cases import COMMANDS, MENDED, Case, cases
from torture.forks import TRACEBACK, Answer, Command, import_all
from torture.report import Row, tell
from torture.small import prepare, temporary_files, unreadable

#: Seconds for a case; it takes half a second.
_SECONDS = 8
#: A refusal has one line of ours, or Hydra's few; before it, what happened on the way.
_LINES = 20


def wrong(case: Case, answer: Answer, folder: Path) -> str | None:
    """What is wrong with an answer and with what it left; ``None``: nothing."""
    if answer.hung:
        return "went on after an interrupt"
    if TRACEBACK in answer.out + answer.err:
        return "traceback"
    if answer.code not in ((130,) if answer.interrupted else (0, 1, 2)):
        return f"exit code {answer.code}"
    if answer.code in (1, 2):
        if not _names(case, answer.err):
            return "key and value are not named"
        is_named = case.key.rpartition(".")[2] in answer.err
        if not is_named and (found := _PYTHONS.search(answer.err)):
            return f"says {found[0]!r}"
        if len(answer.err.splitlines()) > _LINES:
            return "many lines"
    if left := temporary_files(folder):
        return f"left {left[0].relative_to(folder)}"
    return unreadable(folder)


def _names(case: Case, said: str) -> bool:
    """Whether a message names the key, or the part of the configuration, or the value."""
    plain = (re.findall(r"[\w/.]+", case.value) or [case.value.strip("'\\")])[-1][:20]
    # With whatever value training diverges, it is the learning rate that is to blame.
    return any(part in said for part in (*case.key.lstrip("+").split("."), plain, "optimizer.lr"))


#: What Python says to programmers.
_PYTHONS = re.compile(
    r"not supported between|object has no attribute|object is not|unsupported operand|"
    r"expected str, bytes or|invalid literal|argument of type"
)


def attempt(
    case: Case, place: Path, common: dict[str, tuple[str, ...]]
) -> tuple[Answer, str | None]:
    """Run one case in a folder of its own; its answer, and what is wrong with it."""
    folder = place / "cases" / "stand" / "here"  # .. is still ours
    shutil.copytree(place / "template", folder)
    entry = COMMANDS[case.name][0]
    arguments = case.arguments(common.get(case.name, common[entry]))
    until = "page: http" if entry == "demo" else None
    answer = Command(entry, arguments, folder).wait(_SECONDS, until)
    problem = wrong(case, answer, folder.parent)
    shutil.rmtree(place / "cases")
    return answer, problem


def fuzz(place: Path, seed: int, quick: bool) -> list[Row]:
    """Try all cases that there is time for; what is wrong is printed as it is found."""
    import_all()
    common = prepare(place)
    chosen = [*MENDED, *cases(seed, per_key=2)]
    if quick:
        chosen = chosen[: len(MENDED) + 20]
    lost, ends = 0, Counter[str]()
    for case in chosen:
        answer, problem = attempt(case, place, common)
        ends["interrupted" if answer.interrupted else f"code {answer.code}"] += 1
        if problem:
            lost += 1
            tell(f"{case.name} {case.key}={case.value[:80]!r}: {problem}\n{answer.err[-2000:]}")
    keys_tried = len({(case.name, case.key) for case in chosen})
    told = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
    return [Row(f"odd values for {keys_tried} keys of 6 commands ({told})", len(chosen), lost)]
