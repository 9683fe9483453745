"""A page to draw on: from a configuration to a server, and from the page's questions to answers.

:mod:`lora_mnist.side_by_side` knows the answers, :mod:`lora_mnist.show.page` what the page looks
like.
"""

import logging
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from lora_mnist.config import require_known_keys
from lora_mnist.disk.files import read_json
from lora_mnist.disk.results import RESULTS_FILE
from lora_mnist.errors import UserError, missing_extra, one_line
from lora_mnist.show.page import Question, Sheet, as_app, build_page
from lora_mnist.side_by_side import SideBySide

log = logging.getLogger(__name__)

_KEYS = (
    *("stage", "data", "net", "base_name", "base_ckpt", "adapter", "allow_other_base", "paths"),
    "server",
)


class PageDesk:
    """Answers the page's questions out of a :class:`SideBySide`; see :class:`.show.page.Desk`.

    Args:
        sides: what is asked.
        chosen: names of the adapters that the page opens with.
    """

    def __init__(self, sides: SideBySide, chosen: Sequence[str]) -> None:
        self._sides = sides
        self._chosen = list(chosen)
        self.classes = sides.data.short_names

    def menu(self) -> list[tuple[str, str]]:
        return [(_title(name, path), name) for name, path in self._sides.adapters().items()]

    def first_choice(self) -> list[str]:
        return self._chosen

    def test_image(self, number: int) -> Tensor:
        return self._sides.data.test_set.images[number]

    def answer(self, question: Question) -> Sheet:
        problem = ""
        try:
            self._sides.prepare(question.adapters)
        except UserError as error:
            problem = one_line(error)
            question = question._replace(adapters=[])
        try:
            image, said = self._image(question)
            if image is None:
                return Sheet(problem=problem)
            asked = (question.adapters, question.scale, question.enabled)
            base, adapted = self._sides.ask(image, *asked)
        except ValueError as error:
            return Sheet(problem=problem or f"the drawing: {one_line(error)}")
        except UserError as error:
            return Sheet(problem=problem or one_line(error))
        said += f"The base says {self._best(base)}"
        said += f", the adapted network {self._best(adapted)}." if question.adapters else "."
        return Sheet(image, base, adapted, said, problem)

    def _image(self, question: Question) -> tuple[Tensor | None, str]:
        """The image that is meant, and what is known about it."""
        test_set = self._sides.data.test_set
        if question.test is not None and 0 <= question.test < len(test_set):
            label = self.classes[int(test_set.labels[question.test])]
            return self.test_image(question.test), f"Test image {question.test} is a {label}. "
        return self._sides.read(question.png) if question.png else None, ""

    def _best(self, probabilities: Sequence[float]) -> str:
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        return f"{self.classes[best]} ({probabilities[best]:.0%})"

    def next_mistake(self, question: Question, label: int | None) -> tuple[int | None, str]:
        try:
            numbers = self._sides.mistakes(question.adapters, label)
        except UserError:
            try:
                numbers = self._sides.mistakes([], label)
            except UserError as error:
                return None, one_line(error)
        if not numbers:
            return None, "the base gets every test image of this class right"
        after = -1 if question.test is None else question.test
        return next((number for number in numbers if number > after), numbers[0]), ""


def _title(name: str, folder: Path) -> str:
    """What the menu calls an adapter: the class that it repairs comes first."""
    try:
        results = read_json(folder.parent / RESULTS_FILE, most_bytes=2 << 20)
        return f"{one_line(results['target'])}: {name}"
    except (OSError, ValueError, KeyError, TypeError):
        return name


def demo(cfg: DictConfig, run_folder: Path | None = None) -> None:
    """Serve the page until the process is interrupted.

    Args:
        cfg: a configuration of ``configs/demo.yaml``; it is not changed.
        run_folder: not used; the page leaves no files.

    Raises:
        UserError: if a value of ``cfg``, or a file that it names, cannot be used, or the extra
            ``demo`` is not installed.
    """
    require_known_keys(cfg, *_KEYS)
    try:
        import gradio  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise missing_extra("demo.py", "demo", error) from error
    if not isinstance(cfg.server, DictConfig):
        raise UserError(f"server={cfg.server}: expected server.host and server.port")
    with _listening(cfg.server.host, cfg.server.port) as listener:
        sides = SideBySide(cfg)
        app = as_app(build_page(PageDesk(sides, _first_choice(sides))))
        host, port = listener.getsockname()[:2]
        log.info("page: http://%s:%d (Ctrl-C ends it)", f"[{host}]" if ":" in host else host, port)
        # A browser that stays open would keep the server from ending.
        server = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        uvicorn.Server(server).run(sockets=[listener])


def _first_choice(sides: SideBySide) -> list[str]:
    """The adapters that the configuration names, or the latest that there is.

    Raises:
        UserError: if the configuration names one that cannot be used, or there is no base.
    """
    runs = [name for name in sides.adapters() if name.startswith("lora/")]
    chosen = sides.named or sorted(runs)[-1:]  # the folders are named by the time
    try:
        sides.mistakes(chosen)  # loads them, and has the first mistake ready
    except UserError:
        if sides.named:
            raise
        sides.prepare([])  # the page says what is wrong with the latest one
    return chosen


@contextmanager
def _listening(host: Any, port: Any) -> Iterator[socket.socket]:
    """A socket that listens there.

    Raises:
        UserError: if nobody can.
    """
    if type(port) is not int or not 0 <= port < 2**16:
        raise UserError(f"server.port={port}: expected an integer from 0 to {2**16 - 1}")
    family = socket.AF_INET6 if ":" in str(host) else socket.AF_INET
    try:
        listener = socket.create_server((str(host), port), family=family)
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]
        raise UserError(
            f"server.host={host} server.port={port}: {reason}; expected an address of this "
            "machine and a free port; server.port=0 finds one"
        ) from error
    with listener:
        yield listener
