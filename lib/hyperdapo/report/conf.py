"""Sphinx's settings of the report: renders as they are, and nothing that a page would fetch."""

from pathlib import Path

STATIC = Path(__file__).with_name("static")

extensions = ["myst_nb"]
language = "en"
html_theme = "pydata_sphinx_theme"
html_static_path = [str(STATIC)]
html_css_files = ["report.css"]
html_js_files = ["zoom.js"]
html_copy_source = html_use_index = False
html_show_search_summary = False  # it would fetch the pages that are listed, which a browser refuses for files
html_show_sphinx = html_show_copyright = False
html_sidebars = {"index": [], "**": ["sidebar-nav-bs"]}
html_context = {"default_mode": "auto"}
html_theme_options = {
    "navbar_end": ["theme-switcher"],
    "header_links_before_dropdown": 9,
    "show_nav_level": 2,
    "footer_start": [],
    "footer_end": [],
    "show_toc_level": 2,
}

nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show = "Code"
nb_code_prompt_hide = "Code"
nb_ipywidgets_js: dict[str, dict[str, str]] = {}
myst_enable_extensions: list[str] = []
suppress_warnings = ["config.cache"]
