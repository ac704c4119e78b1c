"""The site: `make docs` builds it into build/docs, without a network."""

import pathlib
import shutil
import sys

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_extensions")]

import manifold_optax

project = "manifold_optax"
version = release = manifold_optax.__version__
html_title = f"manifold_optax {version}"
author = "the authors of manifold_optax"
copyright = f"{author}, Apache-2.0"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "docstrings",
    "sources",
]
exclude_patterns = ["_templates", "_extensions", "_static"]
templates_path = ["_templates"]

# Sphinx reads pages below this folder only, so it gets a copy of the notebooks.
TUTORIALS = ROOT / "docs" / "tutorials"
TUTORIALS.mkdir(exist_ok=True)
for notebook in (ROOT / "notebooks").glob("*.ipynb"):
    shutil.copyfile(notebook, TUTORIALS / notebook.name)
# Notebooks carry their outputs: `make notebooks` runs them.
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4

# Single backticks are code, as in Markdown.
default_role = "code"
autosummary_generate = True
autosummary_imported_members = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
autodoc_preserve_defaults = True
napoleon_use_rtype = False
# Fields of a NamedTuple are members too; as variables they are listed once.
napoleon_use_ivar = True
napoleon_custom_sections = ["Cost", ("Example", "example_style"), "Source"]
add_module_names = False

html_theme = "sphinx_book_theme"
html_theme_options = {
    "show_toc_level": 2,
    "home_page_in_toc": True,
    # The sidebar has the search field.
    "navbar_persistent": [],
    "use_download_button": False,
}
html_css_files = ["site.css"]
html_static_path = ["_static"]
html_copy_source = False
