"""The page to draw on: what stands where, and what is asked when something is drawn or moved.

The page computes nothing; a :class:`Desk` answers. Everything that a browser needs comes from the
page's own server, and :func:`as_app` has the browser refuse all else.
"""

import base64
import binascii
import io
from collections.abc import Awaitable, Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image
from torch import Tensor

_HERE = Path(__file__).parent
_URL = "data:image/png;base64,"
#: Pixels of the pad on a side: seven for each of an MNIST image.
_PAD = 196
#: Of more classes only the likeliest are shown.
_MOST_BARS = 10
_LONGEST_PICTURE = 1 << 20
_ANY = -1
#: What a browser may load: what this server sends, and nothing from elsewhere.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "form-action 'self'; frame-ancestors 'self'"
)


class Question(NamedTuple):
    """What a visitor has drawn or chosen.

    Attributes:
        png: a drawing, as the bytes of a PNG file; ``None`` where there is none.
        test: the number of a test image, which then counts instead of a drawing.
        adapters: names of the adapters.
        scale: their factor.
        enabled: whether they are switched on.
    """

    png: bytes | None
    test: int | None
    adapters: list[str]
    scale: float
    enabled: bool


class Sheet(NamedTuple):
    """What the page shows.

    Attributes:
        seen: the image as the network is given it, uint8, (channels, height, width).
        base: the base's probability of each class; empty where nothing was asked.
        adapted: the adapted network's.
        text: what they amount to, in words.
        problem: what the visitor has to mend.
    """

    seen: Tensor | None = None
    base: Sequence[float] = ()
    adapted: Sequence[float] = ()
    text: str = ""
    problem: str = ""


class Desk(Protocol):
    """Whoever answers the page's questions."""

    @property
    def classes(self) -> Sequence[str]:
        """What the classes are called."""

    def menu(self) -> list[tuple[str, str]]:
        """The adapters that there are: what each is called on the page, and its name."""

    def first_choice(self) -> list[str]:
        """Names of the adapters that the page opens with."""

    def answer(self, question: Question) -> Sheet:
        """What base and adapted network say."""

    def next_mistake(self, question: Question, label: int | None) -> tuple[int | None, str]:
        """The next test image, of one class or any, that the base errs on; or why there is none."""

    def test_image(self, number: int) -> Tensor:
        """A test image, uint8, (channels, height, width)."""


def picture_url(image: Tensor) -> str:
    """An image, uint8, (channels, height, width), as a data URL."""
    pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG")
    return _URL + base64.b64encode(file.getvalue()).decode()


def picture_bytes(url: object) -> bytes | None:
    """What a data URL holds; ``None`` where it is no PNG of bearable size."""
    if not isinstance(url, str) or not url.startswith(_URL) or len(url) > _LONGEST_PICTURE:
        return None
    try:
        return base64.b64decode(url.removeprefix(_URL), validate=True)
    except binascii.Error:
        return None


def bars(classes: Sequence[str], sheet: Sheet) -> str:
    """The probabilities as HTML, two bars a class: the base's above, the adapted network's below.

    Each row says in ``data-base`` and ``data-adapted`` what its bars show, in full precision.
    """
    base, adapted = (of or [0.0] * len(classes) for of in (sheet.base, sheet.adapted))
    likely = sorted(range(len(classes)), key=lambda c: -max(base[c], adapted[c]))[:_MOST_BARS]
    rows = [
        f'<div class="row" data-class="{c}" data-base="{base[c]!r}" data-adapted="{adapted[c]!r}">'
        f"<b>{escape(classes[c])}</b>"
        f'<div><i class="base" style="width:{base[c]:.3%}"></i>'
        f'<i class="adapted" style="width:{adapted[c]:.3%}"></i></div>'
        f'<div class="numbers"><span>{_percent(base[c], sheet)}</span>'
        f"<b>{_percent(adapted[c], sheet)}</b></div></div>"
        for c in sorted(likely)
    ]
    key = (
        '<div class="key"><span><i class="base"></i>base</span>'
        '<span><i class="adapted"></i>adapted</span></div>'
    )
    return f'<div class="answers">{key}{"".join(rows)}</div>'


def _percent(probability: float, sheet: Sheet) -> str:
    return f"{probability:.1%}" if sheet.base else "&ndash;"


def words(sheet: Sheet) -> str:
    """What the answers amount to, and what is wrong, as HTML."""
    parts = [f'<div class="said">{escape(sheet.text)}</div>'] if sheet.text else []
    if sheet.problem:
        parts.append(f'<div class="wrong"><b>Problem:</b> {escape(sheet.problem)}</div>')
    return f'<div role="status">{"".join(parts)}</div>'


def seen(sheet: Sheet) -> str:
    """The image that the network sees, as HTML."""
    if sheet.seen is None:
        return '<div class="seen">Draw with the mouse or a finger.</div>'
    _, height, width = sheet.seen.shape
    return (
        f'<div class="seen"><img src="{picture_url(sheet.seen)}" alt="what the network sees">'
        f"What the network sees: {height} x {width} pixels.</div>"
    )


def build_page(desk: Desk) -> Any:
    """Lay out the page.

    Args:
        desk: answers its questions.

    Returns:
        The page, a ``gradio.Blocks``.

    Raises:
        ImportError: if Gradio is not installed.
    """
    import gradio as gr

    def question(pad: Any, adapters: Any, scale: Any, enabled: Any) -> Question:
        pad = pad if isinstance(pad, dict) else {}
        test = pad.get("test")
        return Question(
            picture_bytes(pad.get("png")),
            test if isinstance(test, int) else None,
            [str(name) for name in adapters or []],
            float(scale),
            bool(enabled),
        )

    def shown(sheet: Sheet) -> tuple[str, str, str]:
        return bars(desk.classes, sheet), words(sheet), seen(sheet)

    def ask(*given: Any) -> tuple[str, str, str]:
        return shown(desk.answer(question(*given)))

    def next_mistake(label: int, *given: Any) -> tuple[Any, ...]:
        asked = question(*given)
        number, reason = desk.next_mistake(asked, None if label == _ANY else label)
        if number is None:
            return gr.skip(), *shown(desk.answer(asked)._replace(problem=reason))
        pad = {"png": picture_url(desk.test_image(number)), "test": number}
        return pad, *shown(desk.answer(asked._replace(test=number)))

    def opened() -> tuple[Any, ...]:
        chosen = desk.first_choice()
        # Adapters that were made since the page was built.
        menu = gr.Dropdown(choices=desk.menu(), value=chosen)
        return menu, *shown(desk.answer(Question(None, None, chosen, 1.0, True)))

    with gr.Blocks(title="LoRA-MNIST", analytics_enabled=False) as page:
        gr.Markdown("### LoRA-MNIST\nDraw, and move the slider: 0 is the base, 1 the adapter.")
        with gr.Row():
            with gr.Column(min_width=300):
                pad = gr.HTML(
                    {"png": None, "test": None},
                    html_template=f'<div class="pad"><canvas width="{_PAD}" height="{_PAD}" '
                    'role="img" aria-label="pad to draw on"></canvas>'
                    '<button type="button">Clear</button></div>',
                    js_on_load=(_HERE / "page.js").read_text(),
                )
                look = gr.HTML(seen(Sheet()), elem_id="seen")
            with gr.Column(min_width=300):
                said = gr.HTML(words(Sheet()), elem_id="said")
                answers = gr.HTML(bars(desk.classes, Sheet()), elem_id="answers")
        with gr.Row():
            with gr.Column(min_width=300):
                label = gr.Dropdown(
                    [("any", _ANY), *((name, c) for c, name in enumerate(desk.classes))],
                    value=_ANY,
                    label="Class of the test image",
                )
                mistake = gr.Button("Test image that the base gets wrong", elem_id="mistake")
            with gr.Column(min_width=300):
                scale = gr.Slider(0, 2, 1, step=0.05, label="Scale of the adapter", elem_id="scale")
                enabled = gr.Checkbox(True, label="Adapter on", elem_id="enabled")
                menu = gr.Dropdown(
                    desk.menu(),
                    value=desk.first_choice(),
                    multiselect=True,
                    label="Adapters; several are stacked",
                    elem_id="adapters",
                )
        given, sheet = [pad, menu, scale, enabled], [answers, said, look]
        quiet: dict[str, Any] = {
            "queue": False,  # half the time to an answer
            "show_progress": "hidden",
            "api_visibility": "private",
        }
        gr.on(
            [pad.input, menu.input, scale.input, enabled.input],
            ask,
            given,
            sheet,
            trigger_mode="always_last",
            **quiet,
        )
        mistake.click(next_mistake, [label, *given], [pad, *sheet], **quiet)
        page.load(opened, None, [menu, *sheet], **quiet)
    return page


def as_app(page: Any) -> Callable[..., Awaitable[None]]:
    """The page as an ASGI application, which nothing from elsewhere belongs to.

    Args:
        page: of :func:`build_page`.
    """
    import gradio as gr
    from fastapi import FastAPI

    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        page,
        "/",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        max_file_size=_LONGEST_PICTURE,
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace"]),
        css_paths=_HERE / "page.css",
    )

    async def offline(scope: Any, receive: Any, send: Any) -> None:
        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", _POLICY.encode())
                message = {**message, "headers": [*message["headers"], policy]}
            await send(message)

        await app(scope, receive, guarded)

    return offline
