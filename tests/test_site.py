"""The documentation site: it builds without a warning, needs no network, and documents every public name."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import trifed
from trifed.methods import METHODS

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[1]
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//|<link\b[^>]*\bhref=["']?(?:https?:)?//"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; its folder. Without `--quiet`, under which `--strict` finds no warning."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed; it comes with the docs extra")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(REPOSITORY / "src")}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def documented(site: Path) -> set[str]:
    """Dotted names of the site's inventory, which follows four lines of header."""
    body = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    return {line.split()[0] for line in zlib.decompress(body).decode().splitlines()}


def test_every_public_name_is_documented(site):
    public = {f"trifed.{name}" for name in trifed.__all__ if not name.startswith("__")}
    assert public - documented(site) == set()


def test_every_method_and_setting_has_its_place(site):
    methods = (site / "reference" / "methods.html").read_text(encoding="utf-8")
    assert {name for name in METHODS if f'<h2 id="{name}"' not in methods} == set()
    settings = (site / "reference" / "settings.html").read_text(encoding="utf-8")
    assert all(f"<code>{name}</code>" in settings for name in ("rounds", "wire.bits", "privacy.update.epsilon"))


def test_no_page_fetches_anything_from_outside(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    assert [page.name for page in pages if FETCHED.search(page.read_text(encoding="utf-8"))] == []


def test_a_page_from_the_disk_can_search(site):
    """Such a page can fetch no JSON and start no Worker: the index is a script, a frame replaces the Worker."""
    index = (site / "search" / "search_index.js").read_text(encoding="utf-8")
    assert index.startswith("var __index = ") and "own-prior.html" in index
    for page, script in (("methods.html", "iframe-worker.js"), ("reference/errors.html", "../iframe-worker.js")):
        text = (site / page).read_text(encoding="utf-8")
        assert text.index(f'src="{script}"') < text.index("assets/javascripts/bundle.")


def test_the_header_shows_the_version(site):
    assert f"trifed {trifed.__version__}" in (site / "methods.html").read_text(encoding="utf-8")


def test_headings_are_in_order_and_pictures_have_a_text(site):
    for page in sorted(set(site.rglob("*.html")) - {site / "404.html"}):
        text = page.read_text(encoding="utf-8").partition("<article")[2].partition("</article>")[0]
        levels = [int(level) for level in re.findall(r"<h([1-6])\b", text)]
        assert levels[:1] == [1], page
        assert all(below - above <= 1 for above, below in itertools.pairwise(levels)), (page, levels)
        assert not re.search(r"<img(?![^>]*\balt=\"[^\"])", text), page


def test_links_out_of_the_docs_folder_lead_to_pages(site):
    threat_model = (site / "threat-model.html").read_text(encoding="utf-8")
    assert 'href="what-leaves.html#all-that-the-server-receives"' in threat_model
    security = (site / "security.html").read_text(encoding="utf-8")
    assert '<a href="security-policy.html">security policy</a>' in security
    own_prior = (site / "own-prior.html").read_text(encoding="utf-8")
    assert 'href="benchmarks/methods.html#own-prior-on-the-same-six-partitions"' in own_prior
    benchmarks = (site / "benchmarks" / "index.html").read_text(encoding="utf-8")
    assert 'href="../numbers-sent.png"' in benchmarks and 'href="speed.html"' in benchmarks
