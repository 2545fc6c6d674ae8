"""Reports in a headless browser without a network: what is drawn, and what mouse, fingers and keys do."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Browser, browser, find_browser

pytest.importorskip("jinja2", reason="fills the page's template")

from report_folders import write_dft, write_relaxation, write_screening

from druse.report import write_report

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no chromium or chrome is on the PATH")

HOSTILE = "\"'><img src=x onerror=\"document.title='x'\"></script><script>document.title='x'</script>"

DRAWN = """[...document.querySelectorAll('.card canvas')].map((canvas) => {
  const bytes = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  let n = 0;
  for (let k = 3; k < bytes.length; k += 4) n += bytes[k] > 0;
  return n / (bytes.length / 4);
})"""
PICTURE = "document.querySelector('.card canvas').toDataURL()"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pages")
    write_screening(place / "screened")
    write_relaxation(place / "relaxed")
    write_dft(place / "dft")
    write_screening(place / "hostile", 60, hostile=HOSTILE)
    write_report(place / "all.html", [place / name for name in ("screened", "relaxed", "dft")])
    write_report(place / "screened.html", [place / "screened"], top=100)
    write_report(place / "hostile.html", [place / "hostile"])
    return place


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


def row_texts(chrome: Browser, column: int) -> list[str]:
    found: list[str] = chrome.evaluate(
        f"[...document.querySelectorAll('#rows tbody tr')].map((row) => row.children[{column}].textContent)"
    )
    return found


def centre(chrome: Browser, selector: str) -> tuple[float, float]:
    x, y = chrome.evaluate(
        f"(() => {{ const e = document.querySelector('{selector}'); e.scrollIntoView({{ block: 'center' }});"
        "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
    )
    return x, y


def click(chrome: Browser, selector: str) -> None:
    x, y = centre(chrome, selector)
    chrome.mouse("mousePressed", x, y, button="left", clickCount=1)
    chrome.mouse("mouseReleased", x, y, button="left", clickCount=1)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_everything_is_drawn(chrome: Browser, pages: Path, width: int, dark: bool) -> None:
    chrome.show(pages / "all.html", width=width, dark=dark, touch=width < 500)
    assert chrome.troubles == []
    sizes = chrome.evaluate(
        "[...document.querySelectorAll('.chart')].map((box) => [box.dataset.chart,"
        "box.querySelectorAll('rect, path').length, box.querySelector('svg').getBoundingClientRect().height])"
    )
    assert [kind for kind, _, _ in sizes] == ["histogram", "histogram", "scatter", "change", "parity"]
    for kind, n, height in sizes:
        assert n > 30, kind
        assert 150 < height < 700, kind
    drawn = chrome.evaluate(DRAWN)
    assert len(drawn) == 24
    assert all(0.03 < share < 0.7 for share in drawn), "a crystal, and something around it"
    assert chrome.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing stands out sideways"
    background = chrome.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(18, 22, 26)" if dark else "rgb(246, 247, 248)")


def test_texts_of_charts_do_not_overlap(chrome: Browser, pages: Path) -> None:
    for width in (1400, 390):
        chrome.show(pages / "all.html", width=width, touch=width < 500)
        clashes = chrome.evaluate("""[...document.querySelectorAll('.chart')].flatMap((box) => {
          const texts = [...box.querySelectorAll('text')], found = [];
          const boxes = texts.map((text) => text.getBoundingClientRect());
          boxes.forEach((a, i) => boxes.slice(0, i).forEach((b, j) => {
            const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
            const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
            if (across > 1 && down > 4) found.push([texts[i].textContent, texts[j].textContent]);
          }));
          return found;
        })""")
        assert clashes == []


def test_nothing_hostile_runs(chrome: Browser, pages: Path) -> None:
    chrome.show(pages / "hostile.html")
    assert chrome.evaluate("document.title") == "hostile"
    assert chrome.evaluate("document.querySelectorAll('img').length") == 0
    assert chrome.evaluate("document.querySelectorAll('script').length") == 2
    click(chrome, "#rows .open")
    assert chrome.evaluate("document.getElementById('viewer').open")
    assert HOSTILE in chrome.evaluate("document.getElementById('viewer-id').textContent")
    assert chrome.troubles == []


def test_the_policy_stops_scripts_that_are_not_ours(chrome: Browser, pages: Path, tmp_path: Path) -> None:
    text = (pages / "all.html").read_text("utf-8")
    (tmp_path / "spoilt.html").write_text(text.replace("</main>", "<script>document.title = 'x'</script></main>"))
    chrome.show(tmp_path / "spoilt.html")
    assert chrome.evaluate("document.title") != "x"
    assert len(chrome.troubles) == 1
    assert "Content Security Policy" in chrome.troubles.pop()


def test_sorting_and_filtering(chrome: Browser, pages: Path) -> None:
    chrome.show(pages / "screened.html")
    columns = chrome.evaluate("data.table.columns.map((column) => column.key)")
    n = chrome.evaluate("data.table.rows.length")
    atoms = columns.index("n_atoms")
    assert len(row_texts(chrome, 0)) == 50
    click(chrome, f"#rows thead th:nth-child({atoms + 1}) button")
    found = list(map(int, row_texts(chrome, atoms)))
    assert found == sorted(found)
    assert found[0] < found[-1]
    click(chrome, f"#rows thead th:nth-child({atoms + 1}) button")
    assert list(map(int, row_texts(chrome, atoms))) == sorted(map(int, row_texts(chrome, atoms)), reverse=True)
    assert chrome.evaluate("document.querySelector('#rows [aria-sort]').getAttribute('aria-sort')") == "descending"
    filtering = "const box = document.getElementById('filter'); box.value = '{}'; box.dispatchEvent(new Event('input'))"
    chrome.evaluate(f"(() => {{ {filtering.format('n_atoms<=4 O')} }})()")
    assert all(int(n) <= 4 for n in row_texts(chrome, atoms))
    assert all("O" in text for text in row_texts(chrome, columns.index("formula")))
    shown = chrome.evaluate("document.getElementById('shown').textContent")
    assert shown == f"{len(row_texts(chrome, 0))} of {n} rows"
    chrome.evaluate(f"(() => {{ {filtering.format('')} }})()")
    click(chrome, "#next")
    assert chrome.evaluate("document.getElementById('page').textContent").startswith("page 2 of ")
    assert chrome.troubles == []


def test_csv(chrome: Browser, pages: Path) -> None:
    chrome.show(pages / "hostile.html")
    table = chrome.evaluate("data.table")
    head, *rows = list(csv.reader(io.StringIO(chrome.evaluate("csv()"))))
    assert head == [column["key"] for column in table["columns"]]
    assert len(rows) == len(table["rows"])
    assert rows[0] == [
        "" if value is None else f"{value:.15g}" if isinstance(value, float) else str(value)
        for value in table["rows"][0]
    ]
    assert chrome.evaluate("csvField('=1+1')") == "'=1+1"
    assert chrome.evaluate("csvField(-1)") == "-1"


def test_a_crystal_turns_under_the_mouse(chrome: Browser, pages: Path) -> None:
    chrome.show(pages / "screened.html")
    assert len(chrome.evaluate(DRAWN)) == 100, "more than a browser has contexts of WebGL"
    before = chrome.evaluate(PICTURE)
    x, y = centre(chrome, ".card canvas")
    chrome.mouse("mousePressed", x, y, button="left", buttons=1, clickCount=1)
    chrome.mouse("mouseMoved", x + 60, y + 20, button="left", buttons=1)
    chrome.mouse("mouseReleased", x + 60, y + 20, button="left", clickCount=1)
    turned = chrome.evaluate(PICTURE)
    assert turned != before
    chrome.mouse("mouseMoved", x + 90, y + 50)
    assert chrome.evaluate(PICTURE) == turned, "the button is up"
    chrome.mouse("mouseWheel", x, y, deltaX=0, deltaY=-200, modifiers=2)
    assert chrome.evaluate(PICTURE) != turned
    chrome.evaluate("document.querySelector('.card canvas').dispatchEvent(new MouseEvent('dblclick')); 1")
    assert chrome.evaluate(PICTURE) == before
    assert chrome.troubles == []


def test_the_large_view(chrome: Browser, pages: Path) -> None:
    picture = "document.getElementById('viewer-canvas').toDataURL()"
    chrome.show(pages / "all.html")
    click(chrome, ".enlarge")
    chrome.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")
    views = [chrome.evaluate(picture)]
    for selector in ("[data-view=a]", "[data-view=c]", "[data-view=in]", "#viewer-bonds", "#viewer-super"):
        click(chrome, selector)
        views.append(chrome.evaluate(picture))
    chrome.evaluate("document.getElementById('viewer-canvas').focus()")
    chrome.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowLeft")
    views.append(chrome.evaluate(picture))
    assert len(set(views)) == len(views), "each changes what is seen"
    click(chrome, "#viewer-close")
    assert not chrome.evaluate("document.getElementById('viewer').open")
    assert chrome.troubles == []


def test_fingers(chrome: Browser, pages: Path) -> None:
    chrome.show(pages / "all.html", width=390, touch=True)
    before = chrome.evaluate(PICTURE)
    x, y = centre(chrome, ".card canvas")
    for kind, points in (
        ("touchStart", [{"x": x, "y": y}]),
        ("touchMove", [{"x": x + 15, "y": y}]),
        ("touchMove", [{"x": x + 40, "y": y}]),
        ("touchEnd", []),
    ):
        chrome.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)
    assert chrome.evaluate(PICTURE) != before
    assert chrome.troubles == []


def test_axes_and_groups_of_the_scatter_plot(chrome: Browser, pages: Path) -> None:
    count = "document.querySelectorAll('#scatter .point').length"
    title = "[...document.querySelectorAll('#scatter .axis')].map((text) => text.textContent)"
    chrome.show(pages / "screened.html")
    all_points = chrome.evaluate(count)
    assert all_points == chrome.evaluate("data.points.group.length")
    assert chrome.evaluate(title) == ["Formation energy (eV/atom)", "Band gap (eV)"]
    click(chrome, "#scatter-legend button")
    assert 0 < chrome.evaluate(count) == all_points - chrome.evaluate("data.points.group.filter((g) => g === 0).length")
    click(chrome, "#scatter-legend button")
    assert chrome.evaluate(count) == all_points
    chrome.evaluate(
        "const up = document.getElementById('scatter-y'); up.value = '2'; up.dispatchEvent(new Event('change')); 1"
    )
    assert chrome.evaluate(title) == ["Formation energy (eV/atom)", "Atoms in the cell"]
    assert chrome.troubles == []


def test_it_prints(chrome: Browser, pages: Path) -> None:
    chrome.show(pages / "all.html")
    printed = chrome.call("Page.printToPDF", printBackground=True)
    assert len(printed["data"]) > 100_000
    assert chrome.troubles == []
