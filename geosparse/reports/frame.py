"""The frame of an HTML page that needs nothing from anywhere else, and the section that shows a plan's budgets."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape

from .figures import head_key_svg, head_map_svg, page_css


def html_page(title: str, header: str, sections: Sequence[str], n_keep: Sequence[Sequence[int]]) -> str:
    """A whole page; same input, same bytes.

    Args:
        title: The heading, plain text.
        header: HTML below the heading.
        sections: HTML elements, in order.
        n_keep: Tokens kept, by layer and head: decides the colours of the map.
    """
    name = escape(title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{name}</title>\n<style>\n{page_css(n_keep)}</style>\n</head>\n<body>\n<main>\n"
        f"<header>\n<h1>{name}</h1>\n{header}\n</header>\n" + "\n".join(sections) + "\n</main>\n</body>\n</html>\n"
    )


def map_section(n_keep: Sequence[Sequence[int]]) -> str:
    """The budgets in numbers and as a map of layers and heads; `n_keep`: tokens kept, by layer and head."""
    kept = [n for row in n_keep for n in row]
    if not kept:
        return "<section>\n<h2>Tokens kept per head</h2>\n<p>No plan was recorded.</p>\n</section>"
    few = sum(n <= 2 for n in kept)
    facts = {
        "mean N": f"{statistics.fmean(kept):.1f}",
        "median": f"{statistics.median(kept):g}",
        "min": str(min(kept)),
        "max": str(max(kept)),
        "heads with N ≤ 2": f"{percent(few / len(kept))} ({few} of {len(kept)})",
    }
    tiles = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    return (
        "<section>\n<h2>Tokens kept per head</h2>\n"
        '<p class="note">N is how many tokens a query head of this plan keeps. '
        "Each colour step is a doubling; hover over a cell for its exact N.</p>\n"
        f'<dl class="tiles">{tiles}</dl>\n<div class="maps"><div class="wide">{head_map_svg(n_keep)}</div>'
        f"<div>{head_key_svg(n_keep)}</div></div>\n</section>"
    )


def percent(share: float) -> str:
    """A share of 1 as text, with a decimal where it is small."""
    return f"{100 * share:.{1 if share < 0.0995 else 0}f} %"
