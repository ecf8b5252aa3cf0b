"""How Sphinx builds this documentation; nothing is fetched from a network."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

from latentvirt import __version__

project = "latentvirt"
author = "The latentvirt authors"
project_copyright = author
version = release = __version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "code"  # docstrings name things in single backquotes
highlight_language = "none"

autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_numpy_docstring = False

html_theme = "alabaster"
html_theme_options = {
    "description": "A VM nobody has used before, for every Buildbot build",
    "page_width": "64em",
}
html_show_sourcelink = False
