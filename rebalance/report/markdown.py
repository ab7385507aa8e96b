"""Page -> report.md, with relative links to plots/."""

from __future__ import annotations

from html import escape

from rebalance.report.page import Block, Code, Facts, Fold, Page, Text
from rebalance.report.plots import Picture
from rebalance.report.tables import Cell, Table, as_markdown


def render(page: Page) -> str:
    """Return the page as GitHub's Markdown."""
    parts = [f"# {_escape(page.title)}", _escape(page.lead) + "."]
    if page.verdicts:
        parts.append("\n".join(f"- **{_escape(title)}.** {_escape(text)}" for title, text in page.verdicts))
    for section in page.sections:
        parts += [f"## {section.title}", *(_block(block, section.title) for block in section.blocks)]
    return "\n\n".join(parts) + "\n"


def _block(block: Block, above: str = "") -> str:
    """One block; `above` is the heading of its section, which a picture does not repeat."""
    if isinstance(block, Text):
        return _escape(block.text)
    if isinstance(block, Facts):
        rows = tuple((Cell(name), Cell(value)) for name, value in block.rows)
        return as_markdown(Table("", ("", " "), rows, (), 2))
    if isinstance(block, Code):
        return f"```\n{block.text}\n```"
    if isinstance(block, Fold):
        inside = "\n\n".join(_block(b) for b in block.blocks)
        return f"<details><summary>{escape(block.title)}</summary>\n\n{inside}\n\n</details>"
    if isinstance(block, Picture):
        title = f"### {block.title}\n\n" if block.title != above else ""
        return f"{title}![{block.title}](plots/{block.file})\n\n{_escape(block.caption)}"
    return f"### {_escape(block.title)}\n\n{as_markdown(block)}"


def _escape(text: str) -> str:
    return escape(text, quote=False).replace("_", "\\_").replace("*", "\\*")
