"""Sphinx: Markdown pages, with the tables of options read from the config classes of this checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "flowfactory"
author = "the flowfactory authors"
copyright = "the flowfactory authors, Apache-2.0"
version = release = (Path(__file__).parents[1] / "VERSION").read_text(encoding="utf-8").strip()

extensions = ["myst_parser", "commands", "drawing", "options", "public_names"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
nitpicky = True
nitpick_ignore_regex = [("py:class", r"(?!flowfactory\.).*")]  # types of others, and private ones, in signatures
maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "flowfactory"
html_static_path = ["_static"]
html_show_sphinx = False
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "native"
