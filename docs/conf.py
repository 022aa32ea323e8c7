"""The documentation site: ``sphinx-build -W --keep-going -b html docs DIR``, where unlearnbench is installed."""

from __future__ import annotations

import ast
import importlib
import re
from collections import defaultdict
from importlib import metadata
from pathlib import Path

from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.pycode import ModuleAnalyzer

import unlearnbench

DOCS = Path(__file__).parent
REFERENCE = DOCS / "reference"

project = "unlearnbench"
author = "The unlearnbench developers"
copyright = author
version = release = metadata.version("unlearnbench")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"unlearnbench {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_sourcelink = False
html_copy_source = False

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
python_maximum_signature_line_length = 100

# Files at the root of the repository that are pages here too, and the pages' names.
ROOT_FILES = {
    "README.md": "introduction.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
TITLES = {
    "contracts": "Methods and benchmarks",
    "data": "Data and prompts",
    "domain": "Values",
    "engine": "Scoring and generation",
    "errors": "Errors",
    "metrics": "Metrics and statistics",
    "plugin": "Plugins",
    "training": "Losses and training",
}


def stub_names() -> dict[str, list[tuple[str, str]]]:
    """Room → (module, name) of every public name, as the installed package's stub lists them."""
    stub = Path(unlearnbench.__file__).with_suffix(".pyi")
    rooms = defaultdict(list)
    for node in ast.parse(stub.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            rooms[node.module.partition(".")[0]] += [(node.module, alias.name) for alias in node.names]
    listed = sorted(name for names in rooms.values() for _, name in names)
    assert listed == sorted(unlearnbench.__all__), "the stub is read otherwise here than by lazy_loader"
    return dict(sorted(rooms.items()))


def entry(module: str, name: str) -> list[str]:
    """The lines that document one name."""
    found = getattr(unlearnbench, name)
    qualified = f"unlearnbench.{name}"
    home = f"unlearnbench.{module}"
    if isinstance(found, type) and found.__module__.startswith("unlearnbench"):
        kind = "autoexception" if issubclass(found, BaseException) else "autoclass"
        bases = [] if found.__bases__ == (object,) else ["   :show-inheritance:"]
        return [f".. {kind}:: {qualified}", *bases, ""]
    if callable(found) and getattr(found, "__module__", "").startswith("unlearnbench"):
        return [f".. autofunction:: {qualified}", ""]
    # A constant or a type: its text stands behind its assignment, where autodoc looks only in its home.
    analyzer = ModuleAnalyzer.for_module(home)
    analyzer.analyze()
    text = analyzer.attr_docs.get(("", name), [])
    value = source_of(home, name)
    head = f".. py:data:: {name}"
    return [head, *([f"   :value: {value}"] if value else []), "", *(f"   {line}" for line in text), ""]


def source_of(home: str, name: str) -> str:
    """What a module assigns to a name, as written, where that is short."""
    path = Path(importlib.import_module(home).__file__ or "")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(ast.unparse(target) == name for target in node.targets):
            text = ast.unparse(node.value)
            return text if len(text) < 100 else ""
    return ""


def write_reference() -> None:
    """A page a room under ``reference/``; pages of rooms that are gone are removed."""
    REFERENCE.mkdir(exist_ok=True)
    pages = {}
    for room, names in stub_names().items():
        title = TITLES.get(room, room.capitalize())
        lines = [
            title,
            "=" * len(title),
            "",
            f"From the room ``{room}``; import every name from ``unlearnbench``.",
            "",
            ".. py:currentmodule:: unlearnbench",
            "",
        ]
        lines += [line for module, name in names for line in entry(module, name)]
        pages[f"{room}.rst"] = "\n".join(lines)
    title = "Hooks"
    hooks = [f".. autofunction:: unlearnbench.plugin.hookspecs.{name}\n" for name in hook_names()]
    intro = ".. automodule:: unlearnbench.plugin.hookspecs\n   :no-members:\n"
    pages["hooks.rst"] = "\n".join([title, "=" * len(title), "", intro, *hooks])
    for path in REFERENCE.glob("*.rst"):
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = REFERENCE / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def hook_names() -> list[str]:
    hookspecs = importlib.import_module("unlearnbench.plugin.hookspecs")
    return [name for name in vars(hookspecs) if name.startswith("unlearnbench_")]


def site_links(app, relative_path, parent, content) -> None:
    """Links of files at the root, between each other and into ``docs/``, to the pages that they are here."""
    links = re.compile(r"\]\((?:docs/)?([\w.-]+\.md)(#[\w-]+)?\)")
    content[0] = links.sub(lambda found: f"]({ROOT_FILES.get(found[1], found[1])}{found[2] or ''})", content[0])
    # Leaderboards are no pages of the site; their pictures are shown.
    content[0] = re.sub(r"(?<!!)\[([^]]*)\]\(leaderboards/[^)]*\)", r"\1", content[0])
    content[0] = content[0].replace("](leaderboards/", "](../leaderboards/")
    # The notebook is no page of the site but a file to download.
    content[0] = re.sub(r"\[docs/notebook\.ipynb\]\(docs/notebook\.ipynb\)", "{download}`notebook.ipynb`", content[0])


def public_reference(app, env, node, contnode):
    """A name in a signature, whose home is a module of ours, to where it is documented: under ``unlearnbench``."""
    target = node.get("reftarget", "")
    name = target.rpartition(".")[2]
    if node.get("refdomain") != "py" or name not in unlearnbench.__all__ or target == f"unlearnbench.{name}":
        return None
    domain = env.get_domain("py")
    objects = domain.objects.get(f"unlearnbench.{name}")
    if objects is None:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", f"unlearnbench.{name}", node, contnode)


def google_style(app, what, name, obj, options, lines) -> None:
    """``Args:`` and ``Raises:``. Napoleon as an extension takes a property's words before a colon for its type."""
    what = "function" if what in ("attribute", "data", "property") else what
    lines[:] = GoogleDocstring(lines, Config(), None, what, name, obj, options).lines()


def setup(app) -> None:
    write_reference()
    app.connect("autodoc-process-docstring", google_style)
    app.connect("include-read", site_links)
    app.connect("missing-reference", public_reference)
