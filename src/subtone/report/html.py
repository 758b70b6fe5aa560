"""One HTML page: sections of text and drawings, complete in itself. No script, no network, nothing to fetch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jinja2

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { margin: 2rem auto; max-width: 56rem; padding: 0 1rem; font: 16px/1.5 sans-serif; color: #222; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 3rem; border-top: 1px solid #ccc; padding-top: 1rem; }
figure { margin: 1rem 0; overflow-x: auto; } figcaption { color: #555; font-size: .9rem; }
svg { max-width: 100%; height: auto; }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 0 2rem; }
h3 { font-size: 1rem; margin: .5rem 0 0; } p { margin: .3rem 0; } footer { margin-top: 3rem; color: #555; font-size: .9rem; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>{{ lead }}</p>
{% for section in sections %}
<section>
<h2>{{ section.title }}</h2>
<div class="beside">
{% for heading, paragraphs in section.texts %}
<div><h3>{{ heading }}</h3>{% for text in paragraphs %}<p>{{ text }}</p>{% endfor %}</div>
{% endfor %}
</div>
{% for drawing in section.drawings %}
<figure role="group" aria-label="{{ drawing.caption }}">
{{ drawing.svg | safe }}
<figcaption>{{ drawing.caption }}</figcaption>
</figure>
{% endfor %}
</section>
{% endfor %}
<footer>{{ foot }}</footer>
</body>
</html>
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """A drawing as SVG, which goes into the page as it is, and what it shows in a line of plain text."""

    svg: str
    caption: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """`texts` (heading, paragraphs) stand beside each other, `drawings` below them."""

    title: str
    texts: Sequence[tuple[str, Sequence[str]]]
    drawings: Sequence[Drawing]


def page(title: str, *, lead: str, sections: Sequence[Section], foot: str) -> str:
    """The whole page. All text is escaped; only the drawings are taken as markup."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(PAGE).render(title=title, lead=lead, sections=sections, foot=foot)
