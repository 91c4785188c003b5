"""The page of main.py report in a real browser, headless Chromium: every chart is drawn and nothing is loaded."""

import html.parser
import re
import shutil

import pytest

from evaluation.report.report import ReportConfig, report
from tests.evaluation.handmade import LANGUAGES, language_lines, spearman_line, sts_items, training_run, write_run

pytest.importorskip("plotly", reason="charts need plotly, of the extra `report`")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
EVIL = '</script><script>document.title = "taken"</script><b>&quot; {row}'
NUM_PAIRS = 40


def make_page(folder, *, resamples=100):
    """Two evaluations, the first of them with texts that would run if they were not escaped, and two trainings."""
    runs = []
    for name, noise, best in (("a", 0.1, 80), ("b<script>", 0.5, 90)):
        items = {"stsb": sts_items(noise, NUM_PAIRS, sentence=EVIL), "ntrex": {}}
        lines = [spearman_line("stsb", items["stsb"]), *language_lines(best)]
        neighbours = [{"text": EVIL, "nearest": [[EVIL, 0.5]]}]
        runs.append(write_run(folder / name, lines, items, neighbours=neighbours))
    runs += [training_run(folder / "train-1"), training_run(folder / "train-2", noise=1.0)]
    output = folder / "new" / "report.html"
    report(ReportConfig(output=str(output), resamples=resamples), [str(run) for run in runs])
    return output


class Charts(html.parser.HTMLParser):
    """Counts the marks that plotly has drawn in each chart, and collects what the page refers to."""

    def __init__(self, dom: str):
        super().__init__()
        self.marks: dict[str, dict[str, int]] = {}
        self.references: list[str] = []
        self._groups: list[str] = []  # classes of the open <g>
        self.feed(dom)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        kind = attributes.get("class") or ""
        if (attributes.get("id") or "").startswith("chart-"):
            self._marks = self.marks.setdefault(attributes["id"], {"points": 0, "lines": 0, "bars": 0})
        if tag == "g":
            self._groups.append(kind)
        if tag == "path" and attributes.get("d") not in (None, "", "M0,0Z"):  # an invisible bar
            around = " ".join(self._groups)
            self._marks["bars"] += "barlayer" in around
            self._marks["lines"] += "scatterlayer" in around and kind == "js-line"  # not those of the legend
            self._marks["points"] += "scatterlayer" in around and kind == "point"
        self.references += [value for name, value in attributes.items()
                            if name in ("src", "href", "srcset", "data") and tag != "use"]

    def handle_endtag(self, tag):
        if tag == "g":
            self._groups.pop()


@pytest.fixture(scope="module")
def browser(processes):
    """browser(page, profile) -> the DOM once all scripts have run, and what the console said."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed (Debian: apt-get install chromium)")

    def open_page(page, profile):
        done = processes.run(
            [program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}",
             "--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom", page.as_uri()],
            capture_output=True, text=True, timeout=120,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]

    return open_page


def test_every_chart_is_drawn_and_nothing_is_loaded(tmp_path, browser):
    page = make_page(tmp_path)
    dom, console = browser(page, tmp_path / "profile")
    assert not console
    charts = Charts(dom)
    assert charts.marks == {
        "chart-loss": {"points": 0, "lines": 2, "bars": 0},
        "chart-curves": {"points": 2 * 2 * 3, "lines": 2 * 2, "bars": 0},  # scores x runs x evaluations
        "chart-scatter-0": {"points": 2 * NUM_PAIRS, "lines": 0, "bars": 0},
        "chart-lengths": {"points": 0, "lines": 2, "bars": 0},
        "chart-similarities": {"points": 0, "lines": 2 * 3, "bars": 0},
        "chart-languages-0": {"points": 0, "lines": 0, "bars": 2 * len(LANGUAGES)},
    }
    assert charts.references and all(reference.startswith("#") for reference in charts.references)
    assert "<title>Report: a, b&lt;script&gt;, train-1, train-2</title>" in dom  # no text has run as a script
    for title in ("gold similarity (people)", "cosine (model)", "translation accuracy (%)", "tokens of a text", "step"):
        assert title in dom


def test_the_console_is_heard(tmp_path, browser):
    """What the test above relies on: an exception and a forbidden request both show."""
    page = make_page(tmp_path)
    broken = '<script>throw Error("broken")</script><img src="http://127.0.0.1:9/a.png">'
    page.write_text(page.read_text().replace("</body>", broken + "</body>"))
    console = "\n".join(browser(page, tmp_path / "profile")[1])
    assert "broken" in console and "Content Security Policy" in console


def test_the_file_is_complete_and_refers_to_nothing(tmp_path):
    source = make_page(tmp_path).read_text()
    own = re.sub(r"<script>.*?</script>", "", source, flags=re.DOTALL)  # plotly.js first
    assert "default-src 'none'" in own and "<script" not in own
    assert not re.search(r"\b(src|srcset)=|@import|url\(|href=\"[^#]", own)
    assert source.count("plotly.js v") == 1
    assert source.endswith("</body></html>\n") and "taken" in own
