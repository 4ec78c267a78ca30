"""The site: modules have pages, links lead somewhere, nothing comes from the network or tells of the machine."""

import json
import pkgutil
import re
import runpy
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

import ppl_vae

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "notebooks" / "build_site.py"
EXTENDING, NOTEBOOK = (ROOT / "notebooks" / f"{name}.ipynb" for name in ("extending", "likelihoods"))
if not SCRIPT.is_file():
    pytest.skip("the notebooks are not part of an installed package", allow_module_level=True)
build_site = runpy.run_path(str(SCRIPT))
main, markdown = build_site["main"], build_site["markdown"]


class Page(HTMLParser):
    """Ids, links, and what a browser would fetch or run, of an HTML file."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.fetched, self.alts, self.scripts, self.styles = set(), [], [], [], [], []
        self.inside, self.text = "", []
        self.html = path.read_text()
        self.feed(self.html)

    def handle_starttag(self, tag, attrs):
        of = dict(attrs)
        self.inside = tag
        self.ids.add(of.get("id"))
        if tag == "a" and "href" in of:
            self.links.append(of["href"])
        else:
            self.fetched += [of[key] for key in ("src", "href", "data", "srcset", "poster") if key in of]
        if tag == "img":
            self.alts.append(of.get("alt"))

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        {"script": self.scripts, "style": self.styles}.get(self.inside, self.text).append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebooks")
    for notebook in (EXTENDING, NOTEBOOK):
        shutil.copy(notebook, folder)
    output = tmp_path_factory.mktemp("site")
    main([str(output), "--notebooks", str(folder)])
    return output


@pytest.fixture(scope="module")
def pages(site):
    return {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")}


def test_every_public_module_has_a_page(pages):
    modules = ["ppl_vae", *(info.name for info in pkgutil.walk_packages(ppl_vae.__path__, "ppl_vae."))]
    expected = {f"{name.replace('.', '/')}.html" for name in modules if not name.endswith("__main__")}
    notebooks = {"notebooks/extending.html", "notebooks/likelihoods.html"}
    assert set(pages) == {"index.html", *notebooks, *expected}
    assert set(pages) - {"index.html"} <= set(pages["index.html"].links)
    contents = [link for link in pages["index.html"].links if not link.startswith("https://")]
    assert contents[:3] == ["#Notebooks", "#Modules", "notebooks/extending.html"]
    for page in pages.values():
        assert not [i for i in page.ids if i and i.startswith("_")]
    assert "Likelihood.forward" in pages["ppl_vae/likelihoods.html"].ids


def test_links_lead_somewhere(site, pages):
    count = 0
    for name, page in pages.items():
        for link in (*page.links, *page.fetched):
            if link.startswith(("https://", "data:")):
                continue
            address, _, fragment = unquote(link).partition("#")
            target = (site / name).parent / address if address else site / name
            assert target.is_file(), f"{name}: {link}"
            if fragment:
                assert fragment in pages[target.resolve().relative_to(site.resolve()).as_posix()].ids, f"{name}: {link}"
            count += 1
    assert count > 1000


def test_nothing_comes_from_the_network(pages):
    for name, page in pages.items():
        assert not [f for f in page.fetched if re.match(r"(https?:)?//", f)], name
        for css in page.styles:
            assert not re.search(r"@import|url\((?!\s*['\"]?data:)", css), name
        for script in page.scripts:
            assert not re.search(r"https?://(?!www\.w3\.org)", script), name


def test_nothing_tells_of_the_machine(site, tmp_path):
    paths = {str(ROOT), str(Path.home()), sys.prefix, str(tmp_path.parent), str(site.parent)}
    for path in site.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert not [p for p in paths if p in text], path.name
            assert not re.search(r"\bat 0x[0-9a-f]{6}", text), path.name


def test_docstrings_are_shown_as_they_were_written(pages):
    likelihoods, hierarchical = (
        "".join(pages[f"ppl_vae/{name}.html"].text) for name in ("likelihoods", "models/hierarchical")
    )
    assert "shape (*, params_per_dim), to a distribution of batch shape (*) and" in likelihoods.replace("\n", " ")
    assert "Define the computation" not in likelihoods
    vae = pages["ppl_vae/models/vae.html"]
    assert re.search(r"<pre>[^<]*<code>p\(x, z\) = p\(z\) p\(x \| decoder\(z\)\)", vae.html)
    assert "https://arxiv.org/abs/1312.6114" in vae.links
    assert "encoder2: x to the parameters of q(z2|x)" in hierarchical
    config = pages["ppl_vae/experiments/config.html"]
    assert "Annotated" not in re.sub(r'<div class="pdoc-code.*?</div>', "", config.html, flags=re.DOTALL)
    assert "Added to the images that the encoder sees" in "".join(config.text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a * b < c, `d * e < f`", r"a \* b &lt; c, `d * e < f`"),
        ("Sum\n\n    a * b\n\nof a*b.", "Sum\n\n    a * b\n\nof a\\*b."),
        ("Arguments:\n    x: shape (*, C).\n\n    y: (*).", "Arguments:\n    x: shape (\\*, C).\n\n    y: (\\*)."),
        ("Arguments:\n    x: (*).\n\nThat is\n\n    a * b", "Arguments:\n    x: (\\*).\n\nThat is\n\n    a * b"),
        ("By A. Author,\n2017. Raises.", "By A. Author,\n2017\\. Raises."),
        ("So\n\n>>> 2 * 3\n6\n\n* 7", "So\n\n```pycon\n>>> 2 * 3\n6\n```\n\n\\* 7"),
    ],
)
def test_plain_text_as_markdown(text, expected):
    assert markdown(text) == expected


def test_notebooks_have_their_output_and_their_mathematics(pages):
    page, cells = pages["notebooks/likelihoods.html"], json.loads(NOTEBOOK.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    figures = sum("image/png" in output.get("data", {}) for output in outputs)
    assert len(page.alts) == figures > 0
    assert all(alt.startswith("Figure: ") and len(alt) > 10 for alt in page.alts)
    printed = next("".join(output["text"]) for output in outputs if output["output_type"] == "stream")
    assert printed.splitlines()[0] in "".join(page.text)
    source = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert page.html.count("<math ") == source.count("$") // 2 > 0
    assert "MathJax" not in page.html
    assert "<title>Swapping likelihoods</title>" in page.html
    assert "Swapping likelihoods" in "".join(pages["index.html"].text)


@pytest.mark.parametrize("name", ["pdoc", "nbconvert"])
def test_without_the_extra_one_line_says_so(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    shutil.copy(NOTEBOOK, tmp_path)
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "site"), "--notebooks", str(tmp_path)])
    assert re.fullmatch(
        rf"error: expected the extra docs \(pip install -e '.\[docs\]'\); got .*{name}.*", stop.value.code
    )


def test_what_is_missing_or_damaged_is_one_line(tmp_path):
    def error(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([*map(str, arguments)])
        return stop.value.code

    none = tmp_path / "none"
    assert error(tmp_path, "--notebooks", none) == (
        f"error: {none}: expected a folder of notebooks, as in a checkout; got none there"
    )
    (tmp_path / "damaged.ipynb").write_text('{"cells": [')
    message = error(tmp_path / "site", "--notebooks", tmp_path)
    assert message == f"error: {tmp_path / 'damaged.ipynb'}: expected a notebook; got NotJSONError"
    assert not (tmp_path / "site").exists()
