"""A page as one HTML file that needs nothing else: no network, no script, no font, pictures inlined.

The file carries a Content-Security-Policy that lets it show its own style (known by its digest) and its own
pictures and nothing more, so a name from a dataset or a recipe cannot make a reader's browser do anything. How it
looks is in `templates/`: wide tables scroll in a box of their own, the page never does.
"""

from __future__ import annotations

import base64
import hashlib
import io

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from orchestrator.reports.page import Coverage, Entry, Page, Picture

TEMPLATE, STYLE = "page.html.j2", "page.css"


def html(page: Page) -> str:
    """The page's file as text."""
    environment = Environment(
        loader=PackageLoader("orchestrator.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["coverage"] = lambda value: isinstance(value, Coverage)
    environment.filters |= {"entry": Entry.of, "source": _source, "size": _size}
    style = environment.get_template(STYLE).render()
    return environment.get_template(TEMPLATE).render(page=page, style=Markup(style), policy=_policy(style))


def _policy(style: str) -> str:
    """What the page may load: its one style, by digest, and pictures that are part of it."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


def _source(picture: Picture) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"


def _size(picture: Picture) -> tuple[int, int]:
    """Width and height in pixels, which keep the page from moving while it loads."""
    with Image.open(io.BytesIO(picture.png)) as opened:
        return opened.size
