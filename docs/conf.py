"""Sphinx settings of `make docs`, whose source folder is the repository's root."""

from lstm_fused import __version__

project = "lstm_fused"
author = "The lstm_fused authors"
release = __version__
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/*.md",
    "docs/gpu/*.md",
    "examples/*.md",
]
exclude_patterns = ["docs/README.md"]  # the list of pages on GitHub
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"

default_role = "py:obj"  # of `names` in docstrings
autodoc_typehints = "none"  # signatures have no room for them, and docstrings state shapes and dtypes
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = [
    "myst.header",  # pages begin with the heading that they need
]
