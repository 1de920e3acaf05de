"""Figures of matplotlib as files and as parts of a page, whose colours they take."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import GeosparseError
from ..utils.files import write_atomic
from .palette import PAPER

if TYPE_CHECKING:
    from markupsafe import Markup

# Ids that matplotlib numbers anew in each figure, so that two figures on a page would share them.
_NUMBERED_ID = re.compile(r' id="[A-Za-z0-9.]+_\d+"')


PAGE = {name: f"#01{index:02x}fe" for index, name in enumerate(PAPER)}
"""Colours of a figure that becomes part of a page: they occur nowhere else, and the CSS variable of the same name takes
the place of each."""


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
    """A style sheet: no frame but the x axis, text that stays text; `more`: other settings of matplotlib."""
    settings: dict[str, object] = {
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
    return ["default", settings | more]


def save_png(path: Path | str, figure: Any, dpi: int, sheet: list[Any] | None = None) -> Path:
    """Write a figure as PNG, atomically; same figure, same bytes.

    Args:
        path: The file to write.
        figure: A figure of matplotlib.
        dpi: Dots per inch.
        sheet: The style sheet that it was made with, `style()` where there is none.

    Raises:
        GeosparseError: The file cannot be written.
    """
    import matplotlib.style

    options: dict[str, Any] = {"format": "png", "dpi": dpi, "metadata": {"Software": None}}
    with matplotlib.style.context(sheet or style()):
        return write_atomic(path, lambda temporary: figure.savefig(temporary, **options))


class ThemedPlot(NamedTuple):
    """A figure without its `<svg>` tag, whose colours are the CSS variables of the page.

    Attributes:
        box: The view box, "x y width height" in points.
        body: What is inside.
    """

    box: str
    body: Markup


def themed_plot(figure: Any) -> ThemedPlot:
    """A figure that was drawn with `PAGE`, for a page."""
    import matplotlib.style
    from markupsafe import Markup

    buffer = io.BytesIO()
    blank = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.style.context(style()):
        figure.savefig(buffer, format="svg", transparent=True, metadata=blank)
    svg = buffer.getvalue().decode("utf-8")
    for name, colour in PAGE.items():
        svg = svg.replace(colour, f"var(--{name})")
    # The page's own font: matplotlib names the one that it measured with.
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg[svg.index("<svg") :])
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="([^"]*)"', head)
    return ThemedPlot(box.group(1) if box else "", Markup(_NUMBERED_ID.sub("", body[: body.rindex("</svg>")])))


def themed_svg(figure: Any, label: str) -> Markup:
    """A figure drawn with `PAGE` as an `<svg>` element; `label`: what a screen reader says."""
    from markupsafe import Markup

    from .pages import environment

    plot = themed_plot(figure)
    return Markup(environment().get_template("plot.svg.j2").render(label=label, box=plot.box, body=plot.body))
