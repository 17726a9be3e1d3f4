# SPDX-License-Identifier: Apache-2.0
import builtins
import functools
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from edgeops.perf import Report, plots

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Tree(HTMLParser):
    """Checks that tags nest and collects ids, references and external addresses."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        for key, value in attrs:
            if key == "id":
                self.ids.append(value)
            if key in ("href", "src", "xlink:href"):
                self.links.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@functools.cache
def _page():
    report = Report("A <title> & more")
    first = report.section("One")
    first.text("Some **bold** text and <script>alert(1)</script>.")
    first.table(["name", "ratio"], [["<b>x</b>", "2.0x"], ["y", "-1.5x"]], caption="A & B")
    first.figure(plots.lines({"a": ([1, 2], [1.0, 2.0])}, title="t", xlabel="x", ylabel="y"), "a figure")
    report.section("Two").figure(plots.histogram([1, 2, 2], title="h", xlabel="x"))
    return report


def test_page_is_well_formed_and_self_contained(tmp_path):
    tree = Tree()
    tree.feed(_page().write(tmp_path / "r.html").read_text(encoding="utf-8"))
    assert tree.open == []
    assert len(tree.ids) == len(set(tree.ids))
    assert all(link.startswith("#") for link in tree.links)
    assert {link[1:] for link in tree.links} <= set(tree.ids)


def test_page_text_is_escaped():
    html = _page().html()
    assert "<script>" not in html
    assert "<b>x</b>" not in html
    assert "A &lt;title&gt; &amp; more" in html
    assert "<strong>bold</strong>" in html


def test_page_reads_on_light_and_dark():
    style, _, body = _page().html().partition("</style>")
    assert "prefers-color-scheme: dark" in style
    assert plots.INK not in body
    assert "currentColor" in body


def test_numbers_are_set_flush_right():
    html = _page().html()
    assert '<td class="number">2.0x</td>' in html
    assert '<th scope="col">name</th>' in html


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"Section\.table: every row needs 2 cells; got 1 in row 1"):
        Report("r").section("s").table(["a", "b"], [[1, 2], [3]])


def test_figures_hold_what_they_were_given():
    figure = plots.bars(
        ["a", "b"],
        {"ours": [1.0, None], "loop": [3.0, 4.0]},
        title="t",
        ylabel="y",
        levels={"roof": 9.0},
        whiskers={"loop": [(2.5, 3.5), None]},
    )
    axes = figure.axes[0]
    assert sorted(patch.get_height() for patch in axes.patches) == [1.0, 3.0, 4.0]
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylim()[1] > 9.0
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"ours", "loop", "roof"}


def test_histogram_of_whole_numbers_has_whole_bins():
    figure = plots.histogram(list(range(1, 101)), title="t", xlabel="x", bins=40)
    heights = [patch.get_height() for patch in figure.axes[0].patches]
    assert len({round(h, 6) for h in heights[:-1]}) == 1
    assert sum(heights) == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plots.histogram({"a": []}, title="", xlabel=""), "histogram: every set needs a value"),
        (lambda: plots.lines({}, title="", xlabel="", ylabel=""), "lines: at least one series"),
        (lambda: plots.lines({"a": ([1], [1, 2])}, title="", xlabel="", ylabel=""), "x and y of 'a' must be equally"),
        (lambda: plots.bars(["a"], {"s": [1, 2]}, title="", ylabel=""), "series 's' needs one height per category"),
        (lambda: plots.bars([], {}, title="", ylabel=""), "at least one category and one series"),
    ],
)
def test_bad_figures_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_svg_does_not_change_from_run_to_run():
    def draw():
        return plots.svg(plots.histogram([1.0, 2.5, 2.5], title="t", xlabel="x"), prefix="p")

    assert draw() == draw()


def test_png_is_written(tmp_path):
    plots.png(plots.histogram([1, 2], title="t", xlabel="x"), str(tmp_path / "f.png"), dpi=40)
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("package", ["matplotlib", "jinja2", "markdown_it"])
def test_missing_packages_name_the_extra(monkeypatch, package):
    real = builtins.__import__

    def without(name, *rest):
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    report = Report("r")
    report.section("s").text("words")

    def use():
        return plots.histogram([1, 2], title="t", xlabel="x") if package == "matplotlib" else report.html()

    with pytest.raises(ImportError, match=re.escape("pip install 'edgeops[cli]'")):
        use()


def test_importing_perf_imports_no_plotting_and_leaves_pyplot_alone():
    code = (
        "import sys, edgeops.perf\n"
        "names = ('matplotlib', 'jinja2', 'markdown_it', 'rich')\n"
        "print([n for n in names if n in sys.modules])\n"
        "from edgeops.perf import plots\n"
        "plots.svg(plots.histogram([1, 2], title='t', xlabel='x'))\n"
        "print('matplotlib.pyplot' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "False"]
