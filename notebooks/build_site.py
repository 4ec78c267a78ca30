"""The documentation as a site: the API reference, and the notebooks with their output.

    pip install -e '.[docs]' && python notebooks/build_site.py OUTPUT

It needs a browser to look at and no network: no script, style, font or image comes from elsewhere. The reference is
made by pdoc from the docstrings, the notebooks by nbconvert from what they have stored; nothing of them is run.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import operator
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

PACKAGE = "ppl_vae"
NOTEBOOKS = Path(__file__).parent
Entry = tuple[str, str, str]  # of the index: address, title, and HTML of what it is about
ESCAPED = {"*": r"\*", "<": "&lt;"}

INDEX = """
{% extends "frame.html.jinja2" %}
{% block title %}{{ package }}{% endblock %}
{% block nav %}
  <input type="search" placeholder="Search..." role="searchbox" aria-label="search" pattern=".+" required>
  <h2>Contents</h2>
  <ul>{% for section in sections %}<li><a href="#{{ section }}">{{ section }}</a></li>{% endfor %}</ul>
{% endblock %}
{% block content %}
<main class="pdoc">
  <section><h1>{{ package }}</h1>{{ about | safe }}</section>
  {% for section, pages in sections.items() %}
  <section id="{{ section }}"><h2>{{ section }}</h2>
    <dl>
      {% for href, title, about in pages %}
      <dt><a href="{{ href }}">{{ title }}</a></dt><dd>{{ about | safe }}</dd>
      {% endfor %}
    </dl>
  </section>
  {% endfor %}
</main>
{% include "search.html.jinja2" %}
{% endblock %}
"""

MODULE = """
{% extends "default/module.html.jinja2" %}
{% block nav_title %}
<p><a href="{{ "../" * module.modulename.count(".") }}index.html">All pages</a></p>
{% endblock %}
"""

STYLE = """
.pdoc table { display: block; overflow-x: auto; }
.pdoc td code { white-space: nowrap; }
"""

NOTEBOOK = """
{% extends "lab/index.html.j2" %}
{% block html_head_js %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block html_head_css %}
<style>body { max-width: 60rem; margin: 1rem auto; font-family: sans-serif; }</style>
{% endblock %}
{% block data_png scoped %}
<div class="jp-RenderedImage jp-OutputArea-output">
<img src="data:image/png;base64,{{ output.data["image/png"] | escape_html }}" alt="{{ output.metadata.alt | e }}">
</div>
{% endblock %}
{% block body_header %}{{ super() }}<p><a href="../index.html">All pages</a></p>{% endblock %}
"""


def build(output: Path, notebooks: Path = NOTEBOOKS) -> None:
    """Writes the site into the folder `output`: `index.html`, a page for each module and one for each notebook.

    Raises `ModuleNotFoundError` without the extra `docs`, `FileNotFoundError` where there are no notebooks, and
    `ValueError` for one that can't be read.
    """
    paths = sorted(notebooks.glob("*.ipynb"))
    if not paths:
        raise FileNotFoundError(f"{notebooks}: expected a folder of notebooks, as in a checkout; got none there")
    from_notebooks = [(f"notebooks/{path.stem}.html", *notebook_page(path)) for path in paths]
    files = {href: html for href, _, _, html in from_notebooks}
    files |= reference([(href, title, about) for href, title, about, _ in from_notebooks])
    for name, text in files.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text(text, encoding="utf-8")


def reference(notebooks: Sequence[Entry]) -> dict[str, str]:
    """The reference's pages by their paths, with an index of them and of the notebooks."""
    import jinja2
    import pdoc
    from pdoc.render_helpers import to_html

    render = pdoc.render
    render.configure(docformat="google")
    templates = jinja2.DictLoader({"module.html.jinja2": MODULE, "site.html.jinja2": INDEX, "custom.css": STYLE})
    render.env.loader = jinja2.ChoiceLoader([templates, *filter(None, [render.env.loader])])
    modules = {name: pdoc.doc.Module.from_name(name) for name in module_names()}
    with warnings.catch_warnings():
        # of what `NamedTuple` and `dataclass` make: its types are shown as they are written
        warnings.filterwarnings("ignore", "Error parsing type annotation", UserWarning)
        warnings.filterwarnings("ignore", "Cannot determine where", UserWarning)  # of what a tensor has from C++
        warnings.filterwarnings("ignore", "Failed to run TYPE_CHECKING code", UserWarning)  # of pydantic's own
        for module in modules.values():
            tidy(module)
        files = {address(name): linked(render.html_module(m, modules)) for name, m in modules.items()}
        files["search.js"] = render.search_index(modules)

    def entry(name: str) -> Entry:
        return address(name), name, to_html(modules[name].docstring.partition("\n")[0])

    sections = {
        "Notebooks": notebooks,
        "Modules": [entry(name) for name in modules],
    }
    about = to_html(modules[PACKAGE].docstring)
    index = render.env.get_template("site.html.jinja2")
    files["index.html"] = index.render(package=PACKAGE, about=about, sections=sections, all_modules=modules)
    return files


def module_names() -> list[str]:
    """The package, with its lazy names imported, and every module of it but for `__main__`."""
    package = importlib.import_module(PACKAGE)
    for name in package.__all__:
        getattr(package, name)  # pdoc reads only what has been imported
    found = [info.name for info in pkgutil.walk_packages(package.__path__, f"{PACKAGE}.")]
    return [PACKAGE, *(name for name in found if not name.endswith("__main__"))]


def address(module: str) -> str:
    return f"{module.replace('.', '/')}.html"


def linked(html: str) -> str:
    """A page of the reference without links to what it doesn't show: private names, and members of other packages."""
    ids = {*re.findall(r'\bid="([^"]+)"', html)}
    return re.sub(r'<a href="#([^"]+)">(.*?)</a>', lambda m: m[0] if m[1] in ids else m[2], html)


def tidy(namespace: Any) -> None:
    """Makes Markdown of the docstrings of a pdoc namespace, without those that methods inherit from other packages, and
    types and docstrings of what is `Annotated` for the command line."""
    namespace.docstring = markdown(namespace.docstring)
    for doc in namespace.own_members:
        if doc.kind == "class":
            tidy(doc)
        elif doc.kind == "function":
            known = _defined_here(namespace.obj, doc.name) if namespace.kind == "class" else True
            doc.docstring = markdown(doc.docstring) if known else ""
            plain = [p.replace(annotation=_plain(p.annotation)) for p in doc.signature.parameters.values()]
            doc.signature = doc.signature.replace(parameters=plain)
        elif doc.kind == "variable":
            helps = [getattr(option, "help", None) for option in getattr(doc.annotation, "__metadata__", ())]
            doc.docstring = markdown("\n\n".join(filter(None, [doc.docstring, *helps])))
            doc.annotation = _plain(doc.annotation)
            if get_origin(doc.default_value) is Annotated:  # a type by a name of its own
                doc.default_value = _plain(doc.default_value)


def _defined_here(cls: type, name: str) -> bool:
    """Whether the docstring that a method has or inherits is this package's."""
    documented = (c.__module__ for c in cls.__mro__ if getattr(vars(c).get(name), "__doc__", None))
    return next(documented, "").startswith(PACKAGE)


def _plain(annotation: Any) -> Any:
    """A type without what it is annotated with, also inside of a union or a tuple."""
    kind, parts = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        return _plain(parts[0])
    if kind in (Union, UnionType):
        return functools.reduce(operator.or_, map(_plain, parts))
    return tuple[tuple(map(_plain, parts))] if kind is tuple else annotation


def markdown(docstring: str) -> str:
    """A docstring of plain text as Markdown that shows it as it was written: formulas and examples as code, no star
    taken for emphasis, and papers linked.

    >>> markdown("Shapes (*, C) and `(*)`, arXiv:1312.6114.")
    'Shapes (\\\\*, C) and `(*)`, [arXiv:1312.6114](https://arxiv.org/abs/1312.6114).'
    """
    return "\n\n".join(_blocks(docstring))


def _blocks(docstring: str) -> Iterator[str]:
    in_section = False  # of arguments, whose text is indented as formulas are
    for block in re.split(r"\n\s*\n", docstring):
        if block.startswith(">>>"):
            yield f"```pycon\n{block}\n```"
        elif block.startswith("    ") and not in_section:
            yield block
        else:
            in_section = in_section or bool(re.match(r"[A-Z]\w+:\n", block))
            in_section = in_section and (block.startswith(" ") or "\n " in block)
            text = re.sub(r"(`+[^`]+`+)|([*<])", lambda m: m[1] or ESCAPED[m[2]], block)
            text = re.sub(r"^( *\d+)\. ", r"\1\\. ", text, flags=re.MULTILINE)  # a year, and no item of a list
            yield re.sub(r"arXiv:([\d.]+\d)", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def notebook_page(path: Path) -> tuple[str, str, str]:
    """Title, first paragraph (HTML) and page of a notebook. Raises `ValueError` where it can't be read."""
    import jinja2
    import nbformat
    from latex2mathml.converter import convert
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        """Mathematics as MathML, which browsers show without a script."""

        def inline_math(self, body: str) -> str:
            return convert(body)

        def block_math(self, body: str) -> str:
            return convert(body, display="block")

    def to_html(source: str) -> str:
        return MarkdownWithMath(renderer=Renderer(escape=False, exclude_anchor_links=True)).render(source)

    try:
        notebook = nbformat.read(path, as_version=4)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: expected a notebook; got {type(error).__name__}") from error
    heading = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            *_, heading = heading, *re.findall(r"^#+ (.*)$", cell.source, re.MULTILINE)
        for output in cell.get("outputs", []):
            if "data" in output:
                output.metadata["alt"] = f"Figure: {heading}"
    title, _, rest = notebook.cells[0].source.partition("\n")
    title = notebook.metadata["title"] = title.lstrip("# ")
    loader = jinja2.DictLoader({"site.html.j2": NOTEBOOK})
    exporter = HTMLExporter(extra_loaders=[loader], template_file="site.html.j2", filters={"markdown2html": to_html})
    html, _ = exporter.from_notebook_node(notebook)
    return title, to_html(rest.strip().partition("\n\n")[0]), html


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exit status 1 for failure, in one line, and 2 for bad usage."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("output", type=Path, help="folder for the site; files of the same names are replaced")
    parser.add_argument("--notebooks", type=Path, default=NOTEBOOKS, help="folder of the notebooks")
    given = parser.parse_args(arguments)
    try:
        build(given.output, given.notebooks)
    except ModuleNotFoundError as error:
        sys.exit(f"error: expected the extra docs (pip install -e '.[docs]'); got {error}")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(given.output / "index.html")


if __name__ == "__main__":
    main()
