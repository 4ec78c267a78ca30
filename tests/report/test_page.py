"""The HTML page of finished runs: it holds all that it shows, escapes what it is told, and works in a browser."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from ppl_vae.cli.main import parse
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.evaluating import evaluate_run, save_evaluation
from ppl_vae.experiments.folders import PANEL
from ppl_vae.experiments.runs import load_run
from ppl_vae.experiments.settings import StudyConfig
from ppl_vae.experiments.training import train
from ppl_vae.report.embedding import Figure, address
from ppl_vae.report.explorer import GRID, explorer, plane
from ppl_vae.report.page import Rerun, RunPart, Section, _environment, command_of, html_of, write_page
from ppl_vae.report.panel import panel
from ppl_vae.report.walk import STEPS
from ppl_vae.system.files import write_checked, write_json


class Elements(HTMLParser):
    """The elements of a page, (name, attributes), and its text."""

    def __init__(self, html: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.found if name == tag]


def page_of(*folders, **options):
    output = folders[0].parent / "page.html"
    write_page(folders, output, say=lambda text: None, **options)
    return output.read_text()


def test_the_page_holds_all_that_it_shows(folder):
    elements = Elements(page_of(folder))
    addresses = [a[key] for _, a in elements.found for key in ("src", "href") if key in a]
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    images = elements.all("img")
    assert len(images) == len(list((folder / "figures").glob("*.png"))) + 1  # and the explorer's
    assert all(image["alt"] for image in images)


def test_the_numbers_are_those_on_disk(folder):
    text = Elements(page_of(folder)).text
    summary = json.loads((folder / "log_likelihood.json").read_text())
    assert f"{summary['log_p']:.2f}" in text
    assert f"{summary['data_se']:.2f}" in text
    last = json.loads((folder / "metrics.json").read_text())["last_epoch"]
    assert f"{last['validation_elbo']:.2f}" in text
    assert "ppl-vae train --model dense-vae" in text
    assert "--latent-size 2 --hidden 16 --epochs 1" in text
    assert "k̂ unknown, of too few samples" in text


def test_the_explorer_shows_what_the_model_decodes(folder):
    explorer = next(a for a in Elements(page_of(folder)).all("img") if "hidden" in a)
    png = base64.b64decode(explorer["src"].partition(",")[2])
    sprite = torch.from_numpy(np.array(Image.open(io.BytesIO(png)).convert("L"))).float()
    run = load_run(folder)
    axis, z = plane()
    assert z[3, 20].tolist() == [axis[20], axis[3]]
    expected = (run.decode(z[3, 20]) * 255).round()[0]
    shown = sprite[(GRID - 4) * 6 : (GRID - 3) * 6, 20 * 6 : 21 * 6]  # upwards
    assert (shown - expected).abs().max() <= 1  # alone or in a batch, products round differently


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "![x](http://a.example/x.png)", "a|b <b>", "[x](y)"])
def test_names_are_shown_and_not_obeyed(folder, tmp_path, name):
    safe = name.replace("/", "-")  # a folder's name holds no slash
    copy = tmp_path / safe
    shutil.copytree(folder, copy)
    before, after = Elements(page_of(folder)), Elements(page_of(copy))
    tags = [tag for tag, _ in before.found]
    assert [tag for tag, _ in after.found] == tags
    assert safe in after.text


def test_an_element_in_a_metric_is_text(folder, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    metrics = json.loads((copy / "metrics.json").read_text())
    metrics["versions"]["<img src=x onerror=alert(1)>"] = "</pre><script>alert(2)</script>"
    summary = json.loads((copy / "log_likelihood.json").read_text()) | {"likelihood": "<script>alert(3)</script>"}
    write_json(copy / "metrics.json", metrics)
    write_json(copy / "log_likelihood.json", summary)
    (copy / "checksums.json").unlink()  # by one who means harm
    tags = [tag for tag, _ in Elements(page_of(folder)).found]
    assert [tag for tag, _ in Elements(page_of(copy)).found] == tags


def test_runs_are_put_side_by_side_and_paired(folder, tmp_path):
    other = tmp_path / "other"
    run = train(load_run(folder).config, other, show_progress=False)
    save_evaluation(other, *evaluate_run(run, num_samples=4, num_images=3))
    page = page_of(folder, other)
    assert "Side by side" in page
    save_evaluation(other, *evaluate_run(run, num_samples=4, num_images=2))
    text = Elements(page_of(folder, other)).text
    assert text.count("differences are paired by datum") == 2  # of other data, in tables of their own


def test_a_folder_of_runs_is_its_runs(folder):
    text = Elements(page_of(folder.parent)).text
    assert "ppl-vae train --model dense-vae" in text
    with pytest.raises(FileNotFoundError, match=r"expected a finished run or experiment; got a folder without"):
        page_of(folder / "figures")


def test_the_latent_space_stands_above_the_tables(folder):
    tags = [tag for tag, _ in Elements(page_of(folder)).found]
    assert tags.index("canvas") < tags.index("table")


def test_an_autoencoder_has_a_loss_and_no_elbo(tmp_path):
    train(TrainConfig(model="dense-ae", hidden=(8,), epochs=1, train_images=60), tmp_path / "run", show_progress=False)
    last = json.loads((tmp_path / "run" / "metrics.json").read_text())["last_epoch"]
    elements = Elements(page_of(tmp_path / "run"))
    assert "ELBO" not in elements.text
    assert "validation loss" in elements.text
    assert f"{-last['validation_elbo']:.2f}" in elements.text


def test_no_line_of_markdown_is_an_element():
    page = html_of("<script>alert(1)</script>\n\na <b>b</b> ![c](http://a.example/c.png)")
    assert [tag for tag, _ in Elements(page).found] == ["p", "p"]


def gif():
    data = io.BytesIO()
    Image.new("L", (2, 2)).save(data, "GIF")
    return data.getvalue()


@pytest.mark.parametrize("content", [b"<svg onload=alert(1)>", gif()], ids=["svg", "gif"])
def test_a_picture_that_is_no_png_is_refused(folder, tmp_path, content):
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    (copy / "figures" / "samples.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"samples\.png: expected a PNG image"):
        page_of(copy)


def test_without_its_data_a_run_has_no_explorer(folder, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    (copy / "checksums.json").unlink()
    config = json.loads((copy / "config.json").read_text()) | {"dataset": str(tmp_path / "gone.npz")}
    write_json(copy / "config.json", config)
    page = page_of(copy)
    assert "No latent space to move through" in page
    assert 'class="explorer"' not in page


@pytest.mark.parametrize("name", ["metrics.json", "log_likelihood.json", "config.json"])
def test_a_number_that_was_changed_is_refused(folder, tmp_path, name):
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    values = json.loads((copy / name).read_text())
    key = next(k for k in ("seed", "log_p") if k in values)
    write_json(copy / name, values | {key: values[key] + 1})
    with pytest.raises(ValueError, match=f"{name}: expected the file as it was written"):
        page_of(copy)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a finished run or experiment"):
        page_of(tmp_path)


def chromium():
    found = os.environ.get("PPL_VAE_CHROMIUM") or next(
        filter(None, map(shutil.which, ("chromium", "google-chrome"))), None
    )
    if found is None:
        pytest.skip("needs Chromium on the path, or in $PPL_VAE_CHROMIUM")
    return found


@pytest.fixture(scope="module")
def browser():
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        started = playwright.chromium.launch(executable_path=path, args=quiet)
        yield started
        started.close()


def opened(browser, path, ready="document.querySelector('output').textContent != ''", **options):
    """The page in a new window, when it is ready, what went wrong in it, and what it asked for."""
    page = browser.new_page(**options)
    wrong, asked = [], []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_function(ready)
    return page, wrong, asked


def test_in_a_browser_the_explorer_reacts_to_mouse_and_keyboard(folder, browser):
    page_of(folder)
    page, wrong, asked = opened(browser, folder.parent / "page.html")
    says, explored = page.locator("output"), page.locator(".map")
    assert says.text_content() == "z1 = 0.00, z2 = 0.00"
    explored.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    z1, z2 = map(float, re.findall(r"-?\d+\.\d+", says.text_content()))
    assert z1 > 0
    assert z2 > 0
    shown = page.evaluate("document.querySelector('.shown').toDataURL()")
    box = explored.bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + box["height"] - 2)  # at the lower left
    z1, z2 = map(float, re.findall(r"-?\d+\.\d+", says.text_content()))
    assert z1 < -2
    assert z2 < -2
    at_left = page.evaluate("document.querySelector('.shown').toDataURL()")
    assert at_left != shown
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] - 2)  # along the row
    assert page.evaluate("document.querySelector('.shown').toDataURL()") != at_left
    assert wrong == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    page.close()


@pytest.mark.parametrize("model", ["dense-vae:hidden=8", "conv-vae:hidden=8"])
def test_in_a_browser_a_walk_shows_what_the_run_decodes(folder, tmp_path, browser, model):
    """By the decoder in the page, to a level or two of its rounded weights, or from images decoded beforehand."""
    config = TrainConfig(
        model=model,
        dataset=load_run(folder).config.dataset,
        latent_size=3,
        epochs=20,
        batch_size=16,
        learning_rate=0.01,
        kl_weight="constant:beta=0",
    )
    run = train(config, tmp_path / "run", show_progress=False)
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    page_of(tmp_path / "run", tmp_path / "other")  # whose choices are their own
    page, wrong, _ = opened(browser, tmp_path / "page.html")
    page.locator("input[name=To]").nth(3).check()
    page.locator(".share").first.focus()
    page.keyboard.press("ArrowRight")
    z = run.encode(run.dataset.test[:6])
    latent = (1 - 1 / (STEPS - 1)) * z[0] + z[3] / (STEPS - 1)
    levels = "Array.from(document.querySelector('.shown').getContext('2d').getImageData(0, 0, 6, 6).data)"

    def difference(latent):
        shown = torch.tensor(page.evaluate(levels)).view(6, 6, 4)[..., 0]
        return ((run.decode(latent)[0] * 255) - shown).abs().max()

    assert page.locator("output").first.text_content().startswith("13 % of the way")
    assert difference(latent) < 2.5
    page.locator(".offset").first.focus()
    page.keyboard.press("End")
    found = explorer(tmp_path / "run", lambda name, **reading: run.dataset)
    latent = latent if found.decoder else z[0].clone()  # one move at a time
    assert difference(latent) > 5
    latent[found.latents[0]] += 3 * found.scale[0]
    assert difference(latent) < 2.5
    assert wrong == []
    page.close()


def test_in_a_browser_tables_sort_figures_grow_and_contents_stay(folder, browser):
    rows = "\n".join(
        f"| {name} | {value} |"
        for name, value in [("b", "\u221294.93 ± 0.2"), ("c", "1,010"), ("a", "none"), ("d", "7")]
    )
    rerun = Rerun("ppl-vae run", "python", "beef")
    run = RunPart("one", "### inner", [Figure(address(Image.new("L", (4, 4))), "a figure")], rerun, None, 3)
    text = f"### A heading\n\n| name | log p(x) |\n|---|---|\n{rows}\n" + "\n\nA line." * 200
    template = _environment().get_template("page.html.jinja")
    html = template.render(sections=[Section("study", [run], [text], rerun)], warnings=[], comparison="")
    path = folder.parent / "sorted.html"
    path.write_text(html)
    page, wrong, _ = opened(browser, path, ready="true", viewport={"width": 1600, "height": 900})
    column = "[...document.querySelectorAll('td:nth-child(1)')].map(cell => cell.textContent).join('')"
    assert page.evaluate(column) == "bcad"
    page.get_by_role("button", name="log p(x)").click()
    assert page.evaluate(column) == "bdca"
    page.keyboard.press("Enter")  # the other way round; what has no number stays last
    assert page.evaluate(column) == "cdba"
    assert page.locator("th").nth(1).get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="name").click()
    assert page.evaluate(column) == "abcd"
    links = page.locator("nav a")
    assert links.all_text_contents() == ["study", "A heading", "To run it again", "one"]
    assert not page.locator("details .figures").is_visible()
    links.nth(3).click()  # opens the run, and the contents are still there
    assert page.evaluate("scrollY") > 500
    assert links.first.is_visible()
    page.locator(".enlarge").click()
    large = page.locator("dialog img")
    assert large.is_visible()
    assert large.get_attribute("alt") == "a figure"
    page.keyboard.press("Escape")
    assert not large.is_visible()
    assert wrong == []
    page.close()


@pytest.fixture
def study(folder, tmp_path):
    """An experiment with restored images alone: two corruptions of three images, in two stages."""
    study = tmp_path / "study"
    study.mkdir()
    tiles = np.arange(2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 3)[..., None, None, None] * 20
    levels = dict(zip("ab", np.broadcast_to(tiles, (2, 2, 3, 1, 4, 4)), strict=True))
    content = io.BytesIO()
    np.savez(content, **levels)
    summary = {"corruptions": {"a": ["noise"], "b": ["blur"]}, "stages": ["clean", "restored"], "num_images": 3}
    write_checked(study, {PANEL: content.getvalue(), "restoration-panel.json": json.dumps(summary).encode()})
    return study


def test_the_panel_has_each_stage_of_each_image(study):
    found = panel(study)
    assert (found.corruptions, found.stages, found.num_images) == (["a", "b"], ["clean", "restored"], 3)
    data = base64.b64decode(found.address.partition(",")[2])
    sprite = np.array(Image.open(io.BytesIO(data)).convert("L"))
    # corruption b, image 2, stage 1, of 2 x 3 rows and 2 columns
    assert sprite.shape == (24, 8)
    assert (sprite[20:24, 4:8] == (1 * 6 + 1 * 3 + 2) * 20).all()


def test_a_panel_of_other_arrays_is_refused(study):
    (study / "checksums.json").unlink()
    np.savez(study / PANEL, a=np.zeros((2, 3, 1, 4, 4)), b=np.zeros((2, 3, 1, 4, 4)))
    with pytest.raises(ValueError, match=r"expected levels \(stages, images, C, H, W\) = \(2, 3\); got other arrays"):
        panel(study)


def test_in_a_browser_a_corruption_and_an_image_are_picked(study, browser):
    """By mouse and by keyboard; the stages that are shown are those of the sprite."""
    template = _environment().get_template("page.html.jinja")
    rerun = Rerun("ppl-vae run", "python", "beef")
    sections = [Section(name, [], [], rerun, panel(study)) for name in ("study", "other")]
    html = template.render(sections=sections, warnings=[], comparison="")
    (study / "page.html").write_text(html)
    shade = "document.querySelectorAll('.stage')[1].getContext('2d').getImageData(1, 1, 1, 1).data[0]"
    page, wrong, asked = opened(browser, study / "page.html", ready=f"{shade} == 60")  # corruption a, image 1, restored
    page.locator("input[value='1']").first.check()
    page.wait_for_function(f"{shade} == 180")  # corruption b
    assert page.evaluate(shade.replace("[1]", "[3]")) == 60  # the other panel has its own choice
    page.locator("input[name=image]").first.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function(f"{shade} == 200")  # image 2
    assert wrong == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    page.close()


@pytest.mark.parametrize("width", [380, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_it_fits_and_can_be_read(folder, browser, width, scheme):
    page_of(folder)
    size = {"width": width, "height": 900}
    page, wrong, _ = opened(browser, folder.parent / "page.html", viewport=size, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # WCAG's contrast of text against the page, wherever text has a colour of its own
    contrast = """() => {
      const light = c => { const [r, g, b] = c.match(/[0-9.]+/g).map(v => { v /= 255;
        return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const paper = light(getComputedStyle(document.body).backgroundColor);
      return Math.min(...["p", "h1", "h2", "a, td", ".soft", "figcaption"].map(s => {
        const ink = light(getComputedStyle(document.querySelector(s)).color);
        return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05); })); }"""
    assert page.evaluate(contrast) >= 4.5
    assert wrong == []
    page.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"compiled": False, "hidden": (8, 9), "train_images": 60},
        {"standardize": True, "likelihood": "gaussian-learned", "clip_norm": 0.5, "schedule": "linear"},
    ],
)
def test_the_command_to_run_it_again_means_the_same_config(changes):
    config = TrainConfig(dataset="my faces.npz", **changes)
    command = command_of("ppl-vae train", config, TrainConfig())
    assert parse(shlex.split(command)[1:]).config == config
    study = StudyConfig(short=False, vae_epochs=3)
    again = parse(shlex.split(command_of("ppl-vae run study", study, StudyConfig()))[1:])
    assert again.experiment.config == study
