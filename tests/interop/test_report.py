"""The report in a real browser: does it open without errors, alone, at the width of a phone, with the measured numbers?

The page stands in a frame of its own origin, so that a script beside it can measure it; the page itself runs none.
"""

import functools
import html
import json
import pathlib
import re
import shutil
import subprocess

import pytest

PHONE, DESKTOP = 390, 1280


@pytest.fixture(scope="session")
def chromium():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no chromium: apt-get install chromium")


@pytest.fixture(scope="session")
def measure(chromium, tmp_path_factory):
    """measure(page, width) -> what a browser finds on a page of that width: a dict, and its log."""

    def in_frame(page: pathlib.Path, width: int):
        folder = tmp_path_factory.mktemp("browser")
        wrapper = folder / "frame.html"
        wrapper.write_text(f"""<!DOCTYPE html><meta charset="utf-8">
<iframe id="f" style="border:0;width:{width}px;height:900px" srcdoc="{html.escape(page.read_text())}"></iframe>
<pre id="out"></pre>
<script>
onload = () => {{
  const w = document.getElementById('f').contentWindow, d = w.document;
  const seen = e => e.getClientRects().length > 0;
  const texts = [...d.querySelectorAll('svg text')].filter(seen);
  document.getElementById('out').textContent = JSON.stringify({{
    width: d.documentElement.clientWidth,
    scroll_width: d.documentElement.scrollWidth,
    requests: w.performance.getEntriesByType('resource').map(e => e.name),
    headline: d.querySelector('h1').innerText,
    numbers: [...d.querySelectorAll('data')].map(e => Number(e.value)),
    pictures: [...d.querySelectorAll('svg')].filter(seen).length,
    unnamed: [...d.querySelectorAll('svg')].filter(e => !e.getAttribute('aria-label')).length,
    smallest_text: Math.min(...texts.map(e => e.getScreenCTM().a * parseFloat(w.getComputedStyle(e).fontSize))),
    outside: texts.filter(e => {{
      const box = e.getBoundingClientRect();
      return box.left < -1 || box.right > d.documentElement.clientWidth + 1;
    }}).map(e => e.textContent),
  }});
}};
</script>""")
        result = subprocess.run(
            [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
             f"--user-data-dir={folder / 'profile'}", f"--window-size={max(width, 600) + 40},1000",
             "--dump-dom", wrapper.as_uri()],
            capture_output=True, text=True, timeout=120,
        )
        found = re.search(r'<pre id="out">(.+?)</pre>', result.stdout, re.S)
        assert found, f"the browser said nothing: {result.stderr[-2000:]}"
        return json.loads(html.unescape(found.group(1))), result.stderr

    return functools.cache(in_frame)


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_opens_cleanly_and_fits(report_run, measure, width):
    found, log = measure(report_run / "report" / "index.html", width)
    assert found["width"] == width
    assert found["scroll_width"] <= width, "the page scrolls sideways"
    assert found["outside"] == [], "chart labels reach over the edge"
    # 9 CSS pixels: below that a label cannot be read on a phone held in the hand.
    assert found["smallest_text"] >= 9
    assert found["requests"] == []
    assert found["pictures"] >= 4 and found["unnamed"] == 0
    assert found["headline"]
    assert "CONSOLE" not in log, log


def test_every_kind_of_picture_is_there(report_run):
    page = (report_run / "report" / "index.html").read_text()
    for title in ("All figures", "Quality against size", "Training", "What training did to the codes",
                  "The same prompt, each model", "Error of the weights", "One block, before and after", "Run it", "Settings and files"):
        assert f"<h2>{title}</h2>" in page, title


def test_no_address_outside_the_page(report_run):
    page = (report_run / "report" / "index.html").read_text()
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|\bsrc=", page)


def test_numbers_are_those_of_the_comparison(report_run, measure):
    comparison = json.loads((report_run / "comparison.json").read_text())
    found, _ = measure(report_run / "report" / "index.html", DESKTOP)
    for model in comparison["models"]:
        for key in ("bytes", "ppl", "mean_kld", "p999_kld", "rms_dp", "same_top"):
            # The page writes six decimals.
            assert any(abs(number - model[key]) <= 5.1e-7 for number in found["numbers"]), (model["name"], key)
