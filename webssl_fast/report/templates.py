"""The templates of the report's pages, which escape whatever comes from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from webssl_fast.report import scales


def page_template(name: str, **functions: Any) -> jinja2.Template:
    """A page of template/, which may call `functions` besides `own_file` and the filters of numbers."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("webssl_fast.report", "template"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=scales.number, percent=scales.percent)
    environment.globals.update(own_file=_own_file, **functions)
    return environment.get_template(name)


def _own_file(name: str) -> Markup:
    """Style and script of the package itself, inlined as they are."""
    return Markup((Path(__file__).parent / "template" / name).read_text(encoding="utf-8"))
