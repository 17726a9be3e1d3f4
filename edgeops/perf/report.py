# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page: text, tables and figures, readable on light and dark ground, no external link.

Jinja2 and markdown-it-py belong to the extra `edgeops[cli]` and are imported when the page is rendered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeops._common.errors import message, missing_extra

from .record import replace_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
:root { --ground: #ffffff; --ink: #23272e; --soft: #5c636b; --line: #d9dde2; --band: #f4f6f8; --accent: #2f6fb0; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14171b; --ink: #e4e7eb; --soft: #a3abb5; --line: #363c44; --band: #1c2026; --accent: #7db4ea; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.35rem; margin: 2.5rem 0 .75rem; padding-top: 1rem; border-top: 1px solid var(--line); }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; font-size: .92rem; }
a { color: var(--accent); }
code { font: .9em ui-monospace, monospace; background: var(--band); padding: .1em .3em; border-radius: 3px; }
pre { background: var(--band); padding: .75rem 1rem; overflow-x: auto; border-radius: 6px; }
pre code { background: none; padding: 0; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
td.number, th.number { text-align: right; }
tbody tr:hover { background: var(--band); }
figure { margin: 1.25rem 0; color: var(--soft); }
figcaption, caption { color: var(--soft); font-size: .88rem; text-align: left; padding-top: .4rem; }
caption { caption-side: bottom; }
</style>
</head>
<body>
<main>
<h1>{{ title }}</h1>
{% if sections|length > 1 %}<nav aria-label="Sections"><ul>
{% for section in sections %}<li><a href="#{{ section.anchor }}">{{ section.title }}</a></li>
{% endfor %}</ul></nav>
{% endif %}{% for section in sections %}<section id="{{ section.anchor }}">
<h2>{{ section.title }}</h2>
{% for block in section.blocks %}{{ block }}
{% endfor %}</section>
{% endfor %}</main>
</body>
</html>
"""

_TABLE = """<div class="wide"><table>
{% if caption %}<caption>{{ caption }}</caption>
{% endif %}<thead><tr>{% for name in columns %}<th scope="col"{% if numeric[loop.index0] %} class="number"{% endif %}>\
{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}<tr>{% for cell in row %}<td{% if numeric[loop.index0] %} class="number"{% endif %}>\
{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>"""

_FIGURE = """<figure>
{{ drawing }}
{% if caption %}<figcaption>{{ caption }}</figcaption>
{% endif %}</figure>"""


def _render(template: str, **values: Any) -> str:
    try:
        import jinja2
    except ImportError as error:
        raise missing_extra("edgeops.perf.Report", "jinja2", "cli") from error
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(template).render(**values)


def _safe(html: str) -> str:
    """Mark text that is HTML already, so that the page template does not escape it again."""
    from markupsafe import Markup

    return Markup(html)


def _markdown(text: str) -> str:
    try:
        from markdown_it import MarkdownIt
    except ImportError as error:
        raise missing_extra("edgeops.perf.Report", "markdown-it-py", "cli") from error
    return MarkdownIt("commonmark", {"html": False}).render(text)


def _is_number(cell: object) -> bool:
    """Whether a cell reads as a figure, units such as `1.9x`, `12.5 ms` and `75 %` included."""
    if isinstance(cell, int | float):
        return True
    text = str(cell).strip()
    return text[:1].isdigit() or (text[:1] in "-+" and text[1:2].isdigit())


@dataclass
class Section:
    """One heading with its blocks, in the order they were added. Made by `Report.section`."""

    title: str
    anchor: str
    _blocks: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def text(self, text: str) -> Section:
        """Add Markdown or plain text; raw HTML in it is shown as text."""
        self._blocks.append(("text", {"text": text}))
        return self

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> Section:
        """Add a table; cells are shown with `str`, columns of figures are set flush right.

        Raises:
            ValueError: a row of another length than `columns`.
        """
        for number, row in enumerate(rows):
            if len(row) != len(columns):
                raise ValueError(
                    message(
                        "Section.table", f"every row needs {len(columns)} cells", f"{len(row)} in row {number}",
                        "Use an empty string for what is not known.",
                    )
                )  # fmt: skip
        cells = [[str(cell) for cell in row] for row in rows]
        numeric = [bool(rows) and all(_is_number(row[i]) or row[i] == "" for row in rows) for i in range(len(columns))]
        self._blocks.append(
            ("table", {"columns": list(columns), "rows": cells, "numeric": numeric, "caption": caption})
        )
        return self

    def figure(self, figure: Figure, caption: str = "") -> Section:
        """Add a matplotlib figure as inline SVG."""
        self._blocks.append(("figure", {"figure": figure, "caption": caption}))
        return self

    def render(self) -> list[str]:
        """The blocks as HTML."""
        return [_safe(self._block(kind, values, f"{self.anchor}-{i}")) for i, (kind, values) in enumerate(self._blocks)]

    @staticmethod
    def _block(kind: str, values: dict[str, Any], prefix: str) -> str:
        if kind == "text":
            return _markdown(values["text"])
        if kind == "table":
            return _render(_TABLE, **values)
        from .plots import svg

        drawing = svg(values["figure"], prefix=prefix, label=values["caption"])
        return _render(_FIGURE, drawing=_safe(drawing), caption=values["caption"])


class Report:
    """A page with sections.

    >>> report = Report("Ragged inference")
    >>> _ = report.section("Speed").text("Twice as **fast**.").table(["list", "ratio"], [["CoLA", "2.1x"]])
    >>> "<strong>fast</strong>" in report.html(), "<td class=\\"number\\">2.1x</td>" in report.html()
    (True, True)
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.sections: list[Section] = []

    def section(self, title: str) -> Section:
        """Start a section; add to what it returns."""
        made = Section(title, anchor=f"s{len(self.sections) + 1}")
        self.sections.append(made)
        return made

    def html(self) -> str:
        """The whole page.

        Raises:
            ImportError: jinja2, markdown-it-py or matplotlib is needed and not installed.
        """
        sections = [{"title": s.title, "anchor": s.anchor, "blocks": s.render()} for s in self.sections]
        return _render(_PAGE, title=self.title, sections=sections)

    def write(self, path: str | Path) -> Path:
        """Write the page atomically and return its path."""
        replace_text(path, self.html())
        return Path(path)
