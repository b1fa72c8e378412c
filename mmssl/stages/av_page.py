"""The report of an audio-visual recipe: the same sections as RESULTS.md and as one HTML page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup

from mmssl.stages.files import write_text

TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{{ title }}</title>
<style>
{% include "style.css.j2" %}
figure > img { display: block; width: 100%; height: auto; }
mark { background: var(--warn-page); color: var(--warn); text-decoration: underline; }
</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
<div class="headline">{% for text in lead %}<p>{{ text }}</p>{% endfor %}</div>
{% for text in warnings %}<p class="warning">{{ text }}</p>{% endfor %}
</header>
<main>
{% for section in sections %}
<section>
<h2>{{ section.title }}</h2>
{% for text in section.texts %}<p>{{ text }}</p>{% endfor %}
{% if section.rows %}
<div class="scroll" tabindex="0" role="region" aria-label="{{ section.title }}">
<table>
<thead><tr>
{% for cell in section.header %}
<th scope="col"{% if loop.first %} class="left"{% endif %}>{{ cell }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in section.rows %}
<tr>
{% for cell in row %}
{% if loop.first %}<th scope="row">{{ cell }}</th>{% else %}<td>{{ cell }}</td>{% endif %}

{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endif %}
{% if section.figures %}
<div class="figures">
{% for figure in section.figures %}
<figure>{{ figure.drawing }}<figcaption>{{ figure.text }}</figcaption></figure>
{% endfor %}
</div>
{% endif %}
</section>
{% endfor %}
<section>
<h2>How it was made</h2>
<pre>{{ command }}</pre>
<dl>{% for key, value in versions.items() %}<dt>{{ key }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
</section>
</main>
<footer></footer>
</body>
</html>
"""


@dataclass(frozen=True)
class Figure:
    """A drawing with its caption.

    Attributes:
        drawing: markup, of `mmssl.report.figures` or `picture`.
        text: the caption.
    """

    drawing: Markup
    text: str


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: its heading.
        texts: paragraphs.
        header, rows: a table; no rows, no table.
        figures: on the page alone.
    """

    title: str
    texts: Sequence[str] = ()
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    figures: Sequence[Figure] = field(default=())


def picture(png: bytes, words: str) -> Markup:
    """A PNG file as part of the page; `words` for those who do not see it."""
    source = base64.b64encode(png).decode("ascii")
    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(words, Markup(source))


def write_page(
    folder: Path,
    title: str,
    lead: Sequence[str],
    sections: Sequence[Section],
    *,
    warnings: Sequence[str] = (),
    command: str,
    versions: Mapping[str, str],
) -> None:
    """Write RESULTS.md and report.html, each whole or not at all. Text is escaped; no script, nothing fetched."""
    write_html(folder, title, lead, sections, warnings=warnings, command=command, versions=versions)
    write_text(folder / "RESULTS.md", markdown(title, lead, sections, warnings, command))


def write_html(
    folder: Path,
    title: str,
    lead: Sequence[str],
    sections: Sequence[Section],
    *,
    warnings: Sequence[str] = (),
    command: str,
    versions: Mapping[str, str],
) -> None:
    """Write report.html alone, as `write_page`; cells and captions that are `Markup` stay what they are."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mmssl.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.from_string(TEMPLATE).render(
        title=title, lead=lead, sections=sections, warnings=warnings, command=command, versions=versions
    )
    write_text(folder / "report.html", html)


def markdown(
    title: str, lead: Sequence[str], sections: Sequence[Section], warnings: Sequence[str], command: str
) -> str:
    """RESULTS.md."""
    lines = [f"# {title}", "", " ".join(lead), ""]
    lines += [f"> **Warning.** {text}\n" for text in warnings]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for text in section.texts:
            lines += [text, ""]
        if section.rows:
            lines += [*_table(section.header, section.rows), ""]
    return "\n".join([*lines, f"    {command}", ""])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *escaped)]
