"""The page in a real browser, narrow and wide, light and dark, and on paper."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from studies import SENT, make_comparison, write_comparison

import trifed

BOX = "getBoundingClientRect()"
OVERFLOWING = f"""[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && !e.closest('svg')
  && e.{BOX}.width && e.{BOX}.right > document.documentElement.clientWidth + 1).map(e => e.tagName)"""
WITHOUT_ALT = "[...document.querySelectorAll('img:not([alt]), svg:not([aria-label])')].length"
SMALL_PRINT = f"""Math.min(...[...document.querySelectorAll('svg')].map(
  e => e.{BOX}.width / e.viewBox.baseVal.width))"""


@pytest.fixture(scope="module")
def pages(run_folder, broken_off, tmp_path_factory) -> dict[str, Path]:
    """A page of every kind; the comparison has many methods and long names."""
    folder = tmp_path_factory.mktemp("pages")
    means = {name: 0.7 + 0.01 * place for place, name in enumerate([*SENT, "fed-xs", "fedavg-full", "fedsa-lora"])}
    values = make_comparison(("a-partition-with-a-rather-long-name-0.5", "b"), means, clients=40)
    values["results"]["b"]["clients"][0] = "unbreakable" * 9
    big = write_comparison(folder / "big", values)
    return {
        name: trifed.report(source, folder / f"{name}.html")
        for name, source in (("run", run_folder), ("broken", broken_off), ("big", big))
    }


@pytest.mark.parametrize("name", ["run", "broken", "big"])
@pytest.mark.parametrize("width", [320, 360, 1280])
def test_a_page_loads_clean_and_fits(browser, pages, name, width):
    browser.show(pages[name], width)
    assert browser.value("innerWidth") == width
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value(OVERFLOWING) == []
    assert browser.value(WITHOUT_ALT) == 0
    assert browser.value("document.querySelectorAll('svg').length") > 3
    assert browser.asked == [pages[name].as_uri()]
    assert browser.said == []


def test_wide_tables_scroll_in_their_own_box(browser, pages):
    browser.show(pages["big"], 320)
    wider = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
    assert browser.value(wider) > 0


def test_figures_stay_legible_on_a_phone(browser, pages):
    browser.show(pages["big"], 320)
    assert browser.value(SMALL_PRINT) * 10 >= 8  # text of 10 units is at least 8 pixels high


def pixels(browser):
    return np.asarray(Image.open(io.BytesIO(browser.screenshot())).convert("L"), float)


def test_light_and_dark_differ_and_figures_are_legible_in_both(browser, pages):
    shades = []
    for dark in (False, True):
        browser.show(pages["run"], 1280, dark)
        browser.value("document.querySelector('svg').scrollIntoView()")
        shades.append(pixels(browser))
        ink = browser.value("getComputedStyle(document.querySelector('svg text')).fill")
        assert contrast(ink, browser.value("getComputedStyle(document.body).backgroundColor")) > 7
    light, dark_ones = shades
    assert np.median(light) > 240
    assert np.median(dark_ones) < 40


def contrast(one: str, other: str) -> float:
    """WCAG's ratio of two `rgb(…)` colours: 1 to 21."""
    brightness = []
    for colour in (one, other):
        values = np.array([int(v) for v in colour.strip("rgba()").split(",")[:3]]) / 255
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        brightness.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(brightness) + 0.05) / (min(brightness) + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_every_series_stands_out_from_the_paper(browser, pages, dark):
    browser.show(pages["run"], 1280, dark)
    paper = browser.value("getComputedStyle(document.body).backgroundColor")
    for name in [*(f"series-{place}" for place in range(10)), "ink", "faint", "heat"]:
        browser.value(f"document.body.style.color = 'var(--{name})'")
        least = 4.5 if name in ("ink", "faint") else 3  # text, and marks
        assert contrast(browser.value("getComputedStyle(document.body).color"), paper) > least, name


def test_the_numbers_unfold(browser, pages):
    browser.show(pages["run"], 360)
    hidden = "document.querySelector('figure table').checkVisibility()"
    assert browser.value(hidden) is False
    browser.value("document.querySelector('figure summary').click()")
    assert browser.value(hidden) is True


def test_it_prints_on_white_and_completely(browser, pages):
    browser.show(pages["run"], 1280, dark=True)
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.value("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    assert browser.pdf().startswith(b"%PDF")
