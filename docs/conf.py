"""Sphinx's settings. `sphinx-build -W docs docs/_build`, with fastloop installed, builds without a warning."""

import re

import fastloop

project = "fastloop"
copyright = "the fastloop authors"
version = release = fastloop.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"fastloop {release}"
html_copy_source = False
autodoc_member_order = "groupwise"
autodoc_typehints = "none"


def plain_text(app, what, name, obj, options, lines):
    """Docstrings are prose for help(), with code in single backticks: say so to reST."""
    text = "\n".join(lines).replace("\\", "\\\\").replace("*", r"\*").replace("|", r"\|")
    lines[:] = re.sub(r"`+([^`]+)`+", lambda code: f"``{code[1]}``".replace("\\", ""), text).split("\n")


def setup(app):
    app.connect("autodoc-process-docstring", plain_text)
