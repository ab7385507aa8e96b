"""Page -> report.html: one file, pictures inside, no script and no link to anywhere, so that it survives a mail."""

from __future__ import annotations

from base64 import b64encode
from html import escape
from importlib.resources import files
from pathlib import Path

from rebalance.report.page import Block, Code, Facts, Fold, Page, Text
from rebalance.report.plots import Picture
from rebalance.report.tables import as_html


def render(page: Page, plots: Path) -> str:
    """Return the page as one HTML file.

    Args:
        page: the content.
        plots: folder of its pictures.
    """
    verdicts = "\n".join(
        f'<div class="verdict"><h2>{escape(title)}</h2><p>{escape(text)}</p></div>' for title, text in page.verdicts
    )
    sections = "\n".join(
        f"<section>\n<h2>{escape(s.title)}</h2>\n"
        + "\n".join(_block(b, plots, s.title) for b in s.blocks)
        + "\n</section>"
        for s in page.sections
    )
    style = (files("rebalance.report") / "report.css").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(page.title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
<header>
<h1>{escape(page.title)}</h1>
<p class="lead">{escape(page.lead)}</p>
</header>
<div class="verdicts">
{verdicts}
</div>
{sections}
</main>
</body>
</html>
"""


def _block(block: Block, plots: Path, above: str = "") -> str:
    """One block; `above` is the heading of its section, which a picture does not repeat."""
    if isinstance(block, Text):
        return f"<p>{escape(block.text)}</p>"
    if isinstance(block, Facts):
        rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in block.rows)
        return f"<dl>{rows}</dl>"
    if isinstance(block, Code):
        return f"<pre>{escape(block.text)}</pre>"
    if isinstance(block, Fold):
        inside = "\n".join(_block(b, plots) for b in block.blocks)
        return f"<details><summary>{escape(block.title)}</summary>\n{inside}\n</details>"
    if isinstance(block, Picture):
        data = b64encode((plots / block.file).read_bytes()).decode("ascii")
        title = f"<h3>{escape(block.title)}</h3>" if block.title != above else ""
        return (
            f'<figure>{title}<img alt="{escape(block.title)}" '
            f'src="data:image/png;base64,{data}"><figcaption>{escape(block.caption)}</figcaption></figure>'
        )
    return as_html(block)
