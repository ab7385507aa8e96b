"""What mkdocs calls while it builds the site: pages of methods, flags and papers are made from the package itself."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

from mkdocs.structure.files import File, Files
from package import (
    REFERENCE,
    ROOT,
    Card,
    cards,
    command_flags,
    commands,
    flag_rows,
    general_flags,
    measured,
    paper_notes,
    papers,
    sites,
)
from pictures import equation, plot

KINDS = {
    "element": "an element loss: what one prediction costs",
    "weighting": "a weighting: how much each prediction counts",
    "head": "a head with its loss",
}
AT_WORK = {"drop": " obj_drop=0.75"}  # a flag that is neutral where it is not given


def on_config(config: Any) -> Any:
    """List a page for each method."""
    methods = next(part["Methods"] for part in config.nav if "Methods" in part)
    methods += [{name: f"methods/{name}.md"} for name in cards()]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of methods that have no notes of their own, and the pictures of the reference runs."""
    for name in cards():
        if files.get_file_from_path(f"methods/{name}.md") is None:
            files.append(File.generated(config, f"methods/{name}.md", content=""))
    for picture in sorted(REFERENCE.rglob("*.png")):
        path = picture.relative_to(ROOT).as_posix()
        files.append(File.generated(config, path, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in what is made, and let links to pictures of the repository lead to their copies in the site."""
    path = page.file.src_uri
    name = path.removeprefix("methods/").removesuffix(".md")
    if path.startswith("methods/") and name in cards():
        markdown = f"{method_page(cards()[name])}\n\n{markdown}{evidence(name)}"
    for marker, make in MADE.items():
        if marker in markdown:
            markdown = markdown.replace(marker, make())
    return re.sub(r"\]\((?:\.\./)+(runs/reference/)", f"]({'../' * path.count('/')}\\1", markdown)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def flags_table(rows: Iterable[Sequence[str]]) -> str:
    """The flags, one a row."""
    cells = [
        (f"`{name}`", f"`{default}`" if default else "", values, html.escape(text, quote=False))
        for name, default, values, text in rows
    ]
    return table(("Flag", "Default", "Values", "Meaning"), cells)


def method_page(card: Card) -> str:
    """All that the registry says of a method."""
    title = card.title[0].upper() + card.title[1:]
    start = "yolo train model=yolov8n.pt"
    if not {"stock", "obj", "resobj"} & set(card.sites):
        start = "rebalance train model=fasterrcnn_resnet50_fpn"
    facts = {"Kind": KINDS[card.kind], "When it helps": f"{card.helps}.", "Source": card.source}
    facts["Defined at"] = ", ".join(f"[`{site}`](index.md#where-a-loss-acts)" for site in card.sites)
    if card.kind == "weighting":
        facts["Joins"] = ", ".join(f"`{other}+{card.name}`" for other in card.joins)
    elif card.kind == "element":
        joined = [name for name, other in cards().items() if card.name in other.joins]
        facts["Joined by"] = ", ".join(f"`{card.name}+{name}`" for name in joined) or "nothing"
    parts = [f"# {title}", f"`loss={card.name}`: {card.summary}.", equation(card.equation), plot(card.name)]
    parts += ["\n".join(f"- **{name}**: {text}" for name, text in facts.items())]
    parts.append(f"```bash\n{start} data=my.yaml loss={card.name}{AT_WORK.get(card.name, '')}\n```")
    if card.flags:
        parts += ["## Flags", flags_table(flag_rows(card.flags))]
    return "\n\n".join(parts)


def evidence(name: str) -> str:
    """What was measured of a method."""
    rows = measured(name)
    if not rows:
        return "\n\n## Measured\n\nNot yet: it is tested against its equations; what it gains is not known.\n"
    header = ("Sweep", "Detector", "Labels", "Setting", "test mAP50", "Change (from)")
    return (
        "\n\n## Measured\n\nmAP50 on test in points, mean ± 95 % interval over seeds, the change paired by seed; a row "
        "without an interval is a single run. Budgets, conditions and what to make of them: [Results](../results.md). "
        f"A change within its interval is no evidence.\n\n{table(header, rows)}\n"
    )


def methods_table() -> str:
    """All methods, one a row."""
    rows = [(link(name), card.title, card.summary, card.source) for name, card in cards().items()]
    return table(("`loss=`", "Name", "What it does", "Source"), rows)


def helps_table() -> str:
    """When each method helps."""
    return table(("`loss=`", "When it helps"), [(link(name), card.helps) for name, card in cards().items()])


def sites_table() -> str:
    """Where losses act."""
    rows = []
    for site, (words, own) in sites().items():
        names = [name for name, card in cards().items() if site in card.sites]
        rows.append((f"`{site}`", words, link(own), ", ".join(map(link, names))))
    return table(("Site", "The loss of", "The host's own", "Losses defined there"), rows)


def link(name: str) -> str:
    """To the page of a method, from the page of all."""
    return f"[`{name}`]({name}.md)"


def commands_text() -> str:
    """All commands with their flags; those of `train` stand on the pages of methods."""
    parts = []
    flags = command_flags()
    first: dict[tuple[str, ...], str] = {}  # the flags of a command -> the first command that has them
    for name, text, usage, more in commands():
        parts += [f"## {name}", f"{text[0].upper()}{text[1:]}.", f"```bash\n{usage}\n```"]
        same = first.setdefault(tuple(flags[name]), name)
        if name == "train":
            parts.append(
                "Its flags: [those of no method](methods/index.md#flags-of-no-method), and those on the page of each "
                "[method](methods/index.md)."
            )
        elif same != name and flags[name]:
            parts.append(f"Its flags are those of [{same}](#{same}).")
        elif flags[name]:
            parts.append(flags_table(flag_rows(flags[name])))
        parts.append(more)
    return "\n\n".join(parts)


@cache
def papers_table() -> str:
    """What `rebalance paper` can run."""
    return table(("Key", "In the paper", "What is compared"), [(f"`{key}`", *rest) for key, *rest in papers()])


def paper_notes_text() -> str:
    """What the authors' configurations state, and what differs."""
    parts = []
    for key, title, told in paper_notes():
        parts += [f"### {title}", f"`{key}`: {told[0]}", *told[1:]]
    return "\n\n".join(parts)


MADE: dict[str, Callable[[], str]] = {
    "<!-- made: methods -->": methods_table,
    "<!-- made: helps -->": helps_table,
    "<!-- made: sites -->": sites_table,
    "<!-- made: general flags -->": lambda: flags_table(flag_rows(general_flags())),
    "<!-- made: commands -->": commands_text,
    "<!-- made: papers -->": papers_table,
    "<!-- made: paper notes -->": paper_notes_text,
}
