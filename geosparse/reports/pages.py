"""Pages from the templates of this folder: one HTML file that needs nothing from anywhere else."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..hf.aliases import weights_of
from ..hf.identity import ModelIdentity
from ..utils.files import write_atomic
from .palette import page_colours

if TYPE_CHECKING:
    import jinja2

PACKAGE = "geosparse.reports"


@functools.cache
def environment(package: str = PACKAGE) -> jinja2.Environment:
    """Templates of `package` and those of this one; everything that is not marked as safe is escaped.

    Args:
        package: A package with a folder `templates`.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loaders = [PackageLoader(name) for name in dict.fromkeys((package, PACKAGE))]
    return Environment(
        loader=ChoiceLoader(loaders),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )


def render(
    template: str, *, title: str, n_keep: Sequence[Sequence[int]] = (), package: str = PACKAGE, **values: object
) -> str:
    """A whole page; same input, same text.

    Args:
        template: A template that extends `page.html.j2`.
        title: The heading, plain text.
        n_keep: Tokens kept, by layer and head: decides the colours of the map.
        package: Where the template is, when it is not in this package.
        values: What the template shows.
    """
    from markupsafe import Markup

    templates = environment(package)
    colours = Markup(templates.get_template("colours.css.j2").render(page_colours(n_keep)))
    return templates.get_template(template).render(title=title, colours=colours, **values)


def write_page(path: Path | str, page: str) -> Path:
    """Write the text of a page, atomically and with the same line ends everywhere.

    Raises:
        GeosparseError: The file cannot be written.
    """
    return write_atomic(path, lambda temporary: temporary.write_text(page, encoding="utf-8", newline="\n"))


def named(model: ModelIdentity) -> list[str]:
    """A model by name, and by what its weights are where that is known."""
    weights = weights_of(model.fingerprint)
    return [model.name] if weights is None else [model.name, weights]


def percent(share: float) -> str:
    """A share of 1 as text, with a decimal where it is small."""
    return f"{100 * share:.{1 if share < 0.0995 else 0}f} %"
