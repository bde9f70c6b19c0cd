"""Renders the templates beside it, with the styles that all pages share."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from sqlora.report.cases import visible


def render(template: str, package: str = "sqlora.report", **values: Any) -> str:
    """The page that a template makes; every value that is no Markup is escaped.

    Args:
        template: file name in `package`; it may use the macros of sqlora.report.
    """

    def load(name: str) -> str:
        return _text(package if name == template else "sqlora.report", name)

    environment = Environment(
        loader=FunctionLoader(load),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["visible"] = visible
    styles = Markup(_text("sqlora.report", "report.css"))  # our own text
    return environment.get_template(template).render(styles=styles, **values)


def _text(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text(encoding="utf-8")
