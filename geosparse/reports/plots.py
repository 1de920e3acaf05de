"""Figures of matplotlib as files and as parts of a page, whose colours they take."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifact import write_atomic
from ..errors import GeosparseError
from .palette import PAPER

if TYPE_CHECKING:
    from markupsafe import Markup

# Ids that matplotlib numbers anew in each figure, so that two figures on a page would share them.
_NUMBERED_ID = re.compile(r' id="[A-Za-z0-9.]+_\d+"')


def page_colours_of(names: tuple[str, ...]) -> dict[str, str]:
    """A colour for each name that occurs nowhere else in a figure; `themed_svg` puts a CSS variable in its place."""
    return {name: f"#01{place:02x}fe" for place, name in enumerate(names)}


PAGE = page_colours_of(tuple(PAPER))
"""The named colours of a figure that becomes part of a page."""


def require_plots() -> None:
    """Fail early when the plotting extra is missing.

    Raises:
        GeosparseError: matplotlib cannot be imported.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise GeosparseError("Reports need matplotlib, which is not installed: pip install geosparse[plots]") from error


def style(**more: object) -> list[Any]:
    """The style of every plot: no frame but the x axis, text that stays text."""
    own: dict[str, object] = {
        "svg.hashsalt": "geosparse",
        "svg.fonttype": "none",
        "text.parse_math": False,
        "font.size": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "xtick.minor.size": 0,
        "ytick.major.size": 0,
        "ytick.minor.size": 0,
    }
    return ["default", own | more]


def save_png(path: Path | str, figure: Any, dpi: int) -> Path:
    """Write a figure as PNG, atomically; same figure, same bytes.

    Raises:
        GeosparseError: The file cannot be written.
    """
    import matplotlib.style

    options: dict[str, Any] = {"format": "png", "dpi": dpi, "metadata": {"Software": None}}
    with matplotlib.style.context(style()):
        return write_atomic(path, lambda temporary: figure.savefig(temporary, **options))


def themed_svg(figure: Any, label: str, colours: dict[str, str] = PAGE) -> Markup:
    """A figure as an `<svg>` element whose colours are the CSS variables of the page.

    Args:
        figure: Drawn with `colours`.
        label: What a screen reader says.
        colours: By the names of the variables, from `page_colours_of`.
    """
    import matplotlib.style
    from markupsafe import Markup

    from .pages import environment

    buffer = io.BytesIO()
    blank = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.style.context(style()):
        figure.savefig(buffer, format="svg", transparent=True, metadata=blank)
    svg = buffer.getvalue().decode("utf-8")
    for name, colour in colours.items():
        svg = svg.replace(colour, f"var(--{name})")
    # The page's own font: matplotlib names the one that it measured with.
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg[svg.index("<svg") :])
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="([^"]*)"', head)
    inner = _NUMBERED_ID.sub("", body[: body.rindex("</svg>")])
    parts = {"label": label, "box": box.group(1) if box else "", "body": Markup(inner)}
    return Markup(environment().get_template("plot.svg.j2").render(parts))
