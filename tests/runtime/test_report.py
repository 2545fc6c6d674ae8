"""Reports: what stands on the page, that its numbers are right, that text from files stays text, and what it loads."""

import base64
import dataclasses
import hashlib
import io
import itertools
import json
import re
import shutil
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crystal_examples import NACL

pytest.importorskip("jinja2", reason="fills the page's template")

from report_folders import (
    ENERGY,
    GAP,
    LONG,
    RULES,
    TARGETS,
    entries_of,
    random_crystals,
    write_dft,
    write_relaxation,
    write_screening,
)

from druse import Generator, Request, Run
from druse.candidates import Entries, read_entries, write_entries
from druse.cli import main
from druse.errors import InputError
from druse.properties import PropertyModels
from druse.report import build_report, write_report

HOSTILE = "\"'><img src=x onerror=alert(1)></script><script>alert(2)</script><!--{{7*7}}"
VOID = {"meta", "input", "br", "img", "link", "path", "line"}


class Page(HTMLParser):
    """The parts of a page: tags with attributes, tables as rows of text, what stands in scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.tables: list[list[list[str]]] = []
        self.captions: list[str] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        self.left_open = self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
            self.captions.append("")
        elif tag == "tr" and self.tables:
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag in self.raw:
            self.raw[tag].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, tag
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        where = self._open[-1] if self._open else ""
        if where in self.raw:
            self.raw[where][-1] += data
            return
        self.text += data
        if "td" in self._open or "th" in self._open:
            self.tables[-1][-1][-1] += data
        elif "caption" in self._open:
            self.captions[-1] += data

    @property
    def data(self) -> Any:
        return json.loads(self.raw["script"][0])

    def table(self, begins: str) -> list[list[str]]:
        """The rows of the table whose caption has these words."""
        (place,) = [k for k, caption in enumerate(self.captions) if begins in caption]
        return [[" ".join(cell.split()) for cell in row] for row in self.tables[place]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("folders")
    return {
        "place": place,
        "screen": write_screening(place / "screened"),
        "relax": write_relaxation(place / "relaxed"),
        "dft": write_dft(place / "dft"),
        "hostile": write_screening(place / "hostile", 60, hostile=HOSTILE),
    }


@pytest.fixture(scope="module")
def text(folders: dict[str, Any]) -> str:
    return build_report([folders["place"] / name for name in ("screened", "relaxed", "dft")])


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


@pytest.fixture(scope="module")
def made(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A generated run of six crystals."""

    def work(folder: Path) -> None:
        part = folder.with_name(f"{folder.name}.part")
        generator = Generator(n_threads=1)
        request = Request(targets={ENERGY: -2.0}, count=6, oversample=4)
        Run.create(part, generator, request).finish(generator)
        part.rename(folder)

    return made_once("report_run", work)


def test_every_section_is_there(page: Page) -> None:
    sections = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert sections == [
        "asked", "funnel", "properties", "pairs", "hits", "symmetry", "relaxation", "dft", "candidates", "table",
    ]  # fmt: skip
    linked = [attributes["href"] for tag, attributes in page.tags if tag == "a" and attributes["href"][0] == "#"]
    assert linked == ["#main", *(f"#{section}" for section in sections)]
    assert page.left_open == []


def test_the_page_can_be_read_without_seeing_it(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        assert attributes.get("aria-labelledby", ids[0]) in ids
        if tag == "canvas" or attributes.get("role") == "img":
            assert attributes["aria-label"]
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert all(caption.strip() for caption in page.captions)
    assert ("html", {"lang": "en"}) in page.tags


def test_it_loads_nothing(page: Page) -> None:
    for tag, attributes in page.tags:
        assert "src" not in attributes
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert attributes.get("href", "#").startswith(("#", "data:"))
        assert not any(name.startswith("on") for name in attributes)
    (style,) = page.raw["style"]
    assert "url(" not in style
    assert "@import" not in style
    script = page.raw["script"][1].replace("http://www.w3.org/2000/svg", "")
    for word in ("http:", "https:", "fetch(", "XMLHttpRequest", "import(", "innerHTML", "eval("):
        assert word not in script


def test_the_browser_is_told_to_run_only_our_script(page: Page) -> None:
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(page.raw["script"][1].encode()).digest()).decode()
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}';" in policy


def test_text_from_files_stays_text(folders: dict[str, Any], page: Page) -> None:
    found = Page(build_report([folders["place"] / "hostile"]))
    assert found.left_open == []
    tags, known = {tag for tag, _ in found.tags}, {tag for tag, _ in page.tags}
    assert tags <= known
    assert [tag for tag, _ in found.tags].count("script") == 2
    assert found.raw["script"][1] == page.raw["script"][1], "the script does not depend on the folders"
    columns = [column["key"] for column in found.data["table"]["columns"]]
    assert found.data["table"]["rows"][0][columns.index("id")].startswith(HOSTILE)
    assert any(key.startswith("note") and HOSTILE in key for key in columns)
    assert f"geometry{HOSTILE}" in found.text
    assert all(file.isprintable() and re.fullmatch(r"[A-Za-z0-9_.+()-]+", file) for file in downloads(found))


def downloads(page: Page) -> dict[str, str]:
    found = [a for tag, a in page.tags if tag == "a" and "download" in a]
    return {a["download"]: base64.b64decode(a["href"].partition("base64,")[2]).decode() for a in found}


def test_the_funnel(folders: dict[str, Any], page: Page) -> None:
    rows = [row for row in page.table("entries went in")[1:] if len(row) == 6]
    rule, left = folders["screen"]["rule"], 300
    for name, row in zip(RULES, rows, strict=True):
        refused = int((rule == name).sum())
        assert row[:4] == [name, str(left), str(refused), str(left - refused)]
        assert row[4] == f"{100 * (left - refused) / 300:.1f} %"
        left -= refused
    assert rows[2][5] == "0.90"
    assert f"300 entries went in, {left} came out, in 5.50 s" in page.captions[0]
    assert "no oxidation states balance" in page.text


def test_hit_rates_are_those_that_one_counts(folders: dict[str, Any], page: Page) -> None:
    columns = folders["screen"]
    rows = page.table("lies within the window")[1:]
    expected = []
    for energy, gap in sorted(TARGETS):
        member = (columns[f"target_{ENERGY}"] == energy) & (columns[f"target_{GAP}"] == gap)
        known = member & np.isfinite(columns[ENERGY])
        near = [abs(columns[ENERGY][known] - energy) <= 0.3, abs(columns[GAP][known] - gap) <= 0.5]
        expected += [f"{inside.sum()} of {known.sum()}" for inside in (*near, near[0] & near[1])]
    assert [row[3] for row in rows if len(row) > 3] == expected
    assert [row[0] for row in rows if len(row) > 3][:3] == ["Formation energy", "Band gap", "all of these"]
    assert [row[2] for row in rows if len(row) > 3][:2] == ["± 0.3 eV/atom", "± 0.5 eV"]


def test_windows_can_be_chosen(folders: dict[str, Any]) -> None:
    columns = folders["screen"]
    found = Page(build_report([folders["place"] / "screened"], windows={GAP: 0.1}))
    known = (columns[f"target_{ENERGY}"] == -2) & (columns[f"target_{GAP}"] == 3) & np.isfinite(columns[GAP])
    inside = known & (abs(columns[GAP] - 3) <= 0.1)
    rows = [row for row in found.table("lies within the window") if len(row) > 3 and row[0] == "Band gap"]
    assert rows[1][1:4] == ["3 eV", "± 0.1 eV", f"{inside.sum()} of {known.sum()}"]
    with pytest.raises(InputError, match="`windows` must be numbers above 0"):
        build_report([folders["place"] / "screened"], windows={GAP: 0.0})


def test_histograms_count_every_known_crystal(folders: dict[str, Any], page: Page) -> None:
    columns = folders["screen"]
    assert [one["key"] for one in page.data["histograms"]] == [ENERGY, GAP]
    for one in page.data["histograms"]:
        edges, values = np.array(one["edges"]), columns[one["key"]]
        np.testing.assert_allclose(np.diff(edges), edges[1] - edges[0])
        for series, (energy, gap) in zip(one["series"], sorted(TARGETS), strict=True):
            own = (columns[f"target_{ENERGY}"] == energy) & (columns[f"target_{GAP}"] == gap) & np.isfinite(values)
            counts, survivors = (
                [int(((values[rows] >= a) & (values[rows] < b)).sum()) for a, b in itertools.pairwise(edges)]
                for rows in (own, own & (columns["rule"] == ""))
            )
            assert (series["counts"], series["survivors"]) == (counts, survivors)
            assert sum(counts) + series["below"] + series["above"] == series["n"] == own.sum()
            assert series["mean"] == pytest.approx(values[own].mean())
            assert series["target"] == (energy if one["key"] == ENERGY else gap)
            assert edges[0] <= series["target"] <= edges[-1]


def test_crystal_systems_and_classes(folders: dict[str, Any], page: Page) -> None:
    columns = folders["screen"]
    table = page.table("Crystal systems found")
    for row, (energy, gap) in zip(table[1:], sorted(TARGETS), strict=True):
        own = columns["crystal_system"][(columns[f"target_{ENERGY}"] == energy) & (columns[f"target_{GAP}"] == gap)]
        own = own[own != ""]
        assert row[1:] == [str(len(own)), *(f"{100 * (own == system).mean():.1f}" for system in table[0][2:])]
    gapped = page.table("by the classifiers")[1]
    own = (columns[f"target_{ENERGY}"] == -2) & (columns[f"target_{GAP}"] == 0) & np.isfinite(columns[GAP])
    assert gapped[1:] == ["band gap above 0 eV", str(own.sum()), f"{100 * (columns[GAP][own] > 0.2).mean():.1f} %"]


def test_relaxation(folders: dict[str, Any], page: Page) -> None:
    columns = folders["relax"]
    table = page.table("Mean absolute change")
    row = dict(zip(table[0], table[1], strict=True))
    failed = int(columns["failed"].sum())
    assert (row["Crystals"], row["Failed"], row["Converged"]) == ("60", str(failed), str(60 - failed))
    assert float(row["Δa Å"]) == pytest.approx(np.nanmean(columns["delta_a"]), rel=6e-3)
    assert float(row["RMSD Å"]) == pytest.approx(np.nanmean(columns["rmsd_angstrom"]), rel=6e-3)
    assert float(row["ΔV/V"]) == pytest.approx(np.nanmean(abs(columns["volume_change"])), rel=6e-3)
    assert table[3][0] == "the paper, by DFT"
    assert "not converged in 500 steps" in page.text
    (histogram,) = page.data["changes"]
    assert [series["n"] for series in histogram["series"]] == [
        60 - failed, int(np.isfinite(folders["dft"]["rmsd_angstrom"]).sum()),
    ]  # fmt: skip


def test_what_a_relaxation_says_is_not_said_again_of_what_comes_after_it(tmp_path: Path) -> None:
    """A screening of relaxed crystals and their DFT have the relaxation's columns; folders may be called the same."""
    crystals = random_crystals(20)
    columns = write_relaxation(tmp_path / "relaxed/demo", crystals=crystals)
    (relaxed,) = read_entries([tmp_path / "relaxed/demo"])
    write_screening(tmp_path / "screens/demo", crystals=crystals)
    for told, name in (("screens", "survivors"), ("dft", "dft")):
        if told == "dft":
            write_dft(tmp_path / "dft/demo", crystals=crystals)
        path = tmp_path / told / "demo" / f"{name}.parquet"
        (entries,) = read_entries([path])
        said = relaxed if len(entries) == 20 else relaxed.take(np.arange(len(entries)))
        more = {name: column for name, column in said.columns.items() if name not in entries.columns}
        write_entries(path, dataclasses.replace(entries, columns={**entries.columns, **more}))
    (done,) = read_entries([tmp_path / "dft/demo"])
    finished = done.columns["status"] == "finished"
    ended = np.where(np.arange(20) == np.flatnonzero(finished)[0], 0.0, np.where(finished, 1.0, np.nan))
    whole = dataclasses.replace(done, columns={**done.columns, "converged_ionic": ended})
    write_entries(tmp_path / "dft/demo/dft.parquet", whole)
    page = Page(build_report([tmp_path / name / "demo" for name in ("relaxed", "screens", "dft")], n_jobs=1))
    table = page.table("Mean absolute change")
    assert [row[0] for row in table[1:]] == ["relaxed demo", "DFT demo", "the paper, by DFT"]
    converged = table[0].index("Converged")
    assert [row[converged] for row in table[1:3]] == [str(int((~columns["failed"]).sum())), str(finished.sum() - 1)]


def test_dft(folders: dict[str, Any], page: Page) -> None:
    columns, (parity,) = folders["dft"], page.data["parities"]
    done, failed = columns["status"] == "finished", columns["status"] == "failed"
    error = columns[ENERGY][done] - columns[f"{ENERGY}_dft"][done]
    assert (parity["n"], parity["failed"]) == (done.sum(), failed.sum())
    assert parity["mae"] == pytest.approx(abs(error).mean())
    assert parity["rmse"] == pytest.approx(np.sqrt((error**2).mean()))
    assert parity["measured"].count(None) == failed.sum()
    np.testing.assert_allclose(parity["predicted"], columns[ENERGY][done | failed], rtol=1e-4)


def test_candidates_are_the_last_stage(folders: dict[str, Any], page: Page) -> None:
    done = np.flatnonzero(folders["dft"]["status"] == "finished")
    rows, columns = page.data["table"]["rows"], [column["key"] for column in page.data["table"]["columns"]]
    assert [row[columns.index("id")] for row in rows] == [str(k) for k in done]
    np.testing.assert_allclose([row[columns.index(ENERGY)] for row in rows], folders["dft"][ENERGY][done], rtol=1e-5)
    assert sum(tag == "article" for tag, _ in page.tags) == 24
    screened = Page(build_report([folders["place"] / "screened"], top=3))
    rows, columns = screened.data["table"]["rows"], [column["key"] for column in screened.data["table"]["columns"]]
    survivors = Entries.concatenate(read_entries([folders["place"] / "screened" / "survivors.parquet"]))
    assert [row[columns.index("id")] for row in rows] == list(survivors.ids)
    scores = [row[columns.index("score")] for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert LONG not in columns
    assert sum(tag == "article" for tag, _ in screened.tags) == 3


def test_downloads_are_the_crystals(folders: dict[str, Any], page: Page) -> None:
    import ase.io

    found = downloads(page)
    assert len(found) == 72
    survivors = Entries.concatenate(read_entries([folders["place"] / "dft" / "dft.parquet"]))
    good = np.flatnonzero(survivors.ok)
    for name, content in list(found.items())[:6]:
        b = good[list(found).index(name) // 3]
        crystal = survivors.crystals[int(b)]
        kind = {"cif": "cif", "vasp": "vasp", "extxyz": "extxyz"}[name.rpartition(".")[2]]
        atoms = ase.io.read(io.StringIO(content), format=kind)
        species, frac = atoms.numbers.tolist(), atoms.get_scaled_positions()
        order = np.argsort(crystal.species, kind="stable") if species == sorted(species) else np.arange(len(species))
        assert species == crystal.species[order].tolist()
        difference = frac - crystal.frac[order]
        np.testing.assert_allclose(difference - np.round(difference), 0, atol=1e-7)
        if kind != "cif":  # which has lengths and angles, so the cell is turned
            np.testing.assert_allclose(atoms.cell.array, crystal.cells[0], atol=1e-7)


def test_the_viewer_has_the_structures(folders: dict[str, Any], page: Page) -> None:
    entries = Entries.concatenate(read_entries([folders["place"] / "dft" / "dft.parquet"]))
    good = np.flatnonzero(entries.ok)
    assert len(page.data["structures"]) == len(good)
    for structure, b in zip(page.data["structures"], good, strict=True):
        one = entries.crystals[int(b)]
        assert structure["species"] == one.species.tolist()
        np.testing.assert_allclose(structure["cell"], one.cells.ravel(), atol=1e-4)
        difference = np.array(structure["frac"]) - one.frac.ravel()
        np.testing.assert_allclose(difference - np.round(difference), 0, atol=1e-4)
    symbol, colour, radius = page.data["elements"]["8"]
    assert (symbol, colour, radius) == ("O", "#ff0d0d", 0.66)


def test_the_same_folders_give_the_same_bytes(folders: dict[str, Any], text: str, tmp_path: Path) -> None:
    said = write_report(tmp_path / "a.html", [folders["place"] / name for name in ("screened", "relaxed", "dft")])
    assert (tmp_path / "a.html").read_text("utf-8") == text
    assert said.bytes == len(text.encode())
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]


def test_a_page_that_fails_leaves_the_old_one(folders: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("old")
    with pytest.raises(InputError):
        write_report(tmp_path / "a.html", [folders["place"] / "screened", tmp_path / "none"])
    assert (tmp_path / "a.html").read_text() == "old"


def test_many_rows_make_no_large_page(tmp_path: Path) -> None:
    write_screening(tmp_path / "many", 20_000)
    text = build_report([tmp_path / "many"])
    found = Page(text)
    assert len(text) < 8e6
    assert len(found.data["table"]["rows"]) == 5000
    assert len(found.data["points"]["group"]) == 3000
    assert "The first 5,000 of 7," in found.text
    assert "3,000 of " in found.text
    atoms = sum(len(one["species"]) for one in found.data["structures"] if one)
    assert 20_000 < atoms <= 60_000


def test_a_run(made: Path) -> None:
    found = Page(build_report([made]))
    kinds = [attributes["id"] for tag, attributes in found.tags if tag == "section"]
    assert kinds == ["asked", "properties", "pairs", "hits", "symmetry", "candidates", "table"]
    assert "formation energy per atom −2" in found.text
    assert "ancestral, 71 evaluations" in found.text
    values = PropertyModels.open().columns(Run.open(made).crystals())
    assert [one["key"] for one in found.data["histograms"]] == [ENERGY, GAP]
    for one in found.data["histograms"]:
        assert one["series"][0]["mean"] == pytest.approx(values[one["key"]].mean())
    assert "Formation energy: by cgcnn-" in found.text
    assert [row[1] for row in found.table("by the classifiers")[1:]] == [
        "band gap above 0 eV",
        "formation energy above −0.9 eV/atom",
    ]
    (row,) = [row for row in found.table("lies within the window") if row[0] == "Formation energy" and len(row) > 3]
    assert row[1:4] == ["−2 eV/atom", "± 0.3 eV/atom", f"{(abs(values[ENERGY] + 2) <= 0.3).sum()} of 6"]
    systems = found.table("Crystal systems found")[1]
    assert systems[1] == "6"
    assert sum(map(float, systems[2:])) == pytest.approx(100, abs=0.4)
    assert len(found.data["structures"]) == 6
    plain = Page(build_report([made], models=False, symmetry=False))
    assert "as the latent's Predictor says" in plain.text
    assert "symmetry" not in [attributes.get("id") for tag, attributes in plain.tags if tag == "section"]


def test_a_run_that_was_screened_counts_once(made: Path, tmp_path: Path) -> None:
    entries = Entries.concatenate(read_entries([made]))
    write_screening(tmp_path / "screened", crystals=entries.crystals, targets=[(-2.0, 1.0)])
    path = tmp_path / "screened" / "survivors.parquet"
    survivors = Entries.concatenate(read_entries([path]))
    n = len(survivors)
    write_entries(path, entries_of(survivors.crystals, survivors.ids, dict(survivors.columns), str(made)))
    found = Page(build_report([made, tmp_path / "screened"]))
    assert "entries judged" in found.text
    assert len(found.data["groups"]) == 1
    assert len(found.data["table"]["rows"]) == n
    assert "generated" in found.text


def test_runs_of_the_same_target_are_told_apart(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "other")
    found = Page(build_report([made, tmp_path / "other"], symmetry=False, models=False))
    labels = [group["label"].replace("\N{NO-BREAK SPACE}", " ") for group in found.data["groups"]]
    assert labels == [f"Formation energy −2 eV/atom ({name})" for name in ("other", made.name)]


def test_a_reference_is_drawn_beside(folders: dict[str, Any], tmp_path: Path) -> None:
    table = tmp_path / "real.csv"
    table.write_text(f"material_id,{ENERGY},cif\n" + "".join(f"a{k},{-k / 10},data_x\n" for k in range(30)))
    found = Page(build_report([folders["place"] / "screened"], reference=table))
    energy, gap = found.data["histograms"]
    assert sum(energy["reference"]) == sum(min(energy["edges"]) <= -k / 10 <= max(energy["edges"]) for k in range(30))
    assert gap["reference"] is None
    table.write_text("material_id,cif\na,data_x\n")
    with pytest.raises(InputError, match="has no numbers in the columns"):
        build_report([folders["place"] / "screened"], reference=table)


def test_inputs_for_dft_that_nobody_has_run_yet(tmp_path: Path) -> None:
    write_dft(tmp_path / "dft", 9)
    entries = Entries.concatenate(read_entries([tmp_path / "dft" / "dft.parquet"]))
    (tmp_path / "dft" / "dft.parquet").unlink()
    crystals = random_crystals(9)
    write_entries(tmp_path / "dft" / "index.parquet", entries_of(crystals, entries.ids, {}, "runs/made"))
    found = Page(build_report([tmp_path / "dft"]))
    assert [a["id"] for tag, a in found.tags if tag == "section"] == ["asked", "candidates", "table"]
    assert len(found.data["table"]["rows"]) == 9


def test_a_screening_without_survivors(tmp_path: Path) -> None:
    write_screening(tmp_path / "none", 30)
    path = tmp_path / "none" / "survivors.parquet"
    survivors = Entries.concatenate(read_entries([path]))
    write_entries(path, survivors.take(np.zeros(0, np.int64)))
    found = Page(build_report([tmp_path / "none"]))
    assert "candidates" not in [a.get("id") for tag, a in found.tags if tag == "section"]
    assert found.table("entries went in")


def test_ids_and_cells_of_any_kind(tmp_path: Path) -> None:
    place = tmp_path / "odd"
    flat = NACL.replace(cells=np.zeros((1, 3, 3)))
    crystals = type(NACL).concatenate([NACL, flat, NACL.replace(frac=np.full((2, 3), np.nan)), NACL])
    ids = ["=1+1", "", "a\nb\u202e", "x" * 5000]
    place.mkdir()
    columns = {"constructor": np.ones(4), "__proto__": np.arange(4.0), "empty": np.full(4, np.nan), "": np.ones(4)}
    write_entries(place / "relaxed.parquet", entries_of(crystals, ids, columns, "runs/made"))
    (place / "relax.json").write_text('{"calculator": null, "deep": {"a": [1, {"b": NaN}]}}')
    text = build_report([place])
    found = Page(text)
    assert len(found.data["table"]["rows"]) == 2, "a flat cell and places that are no numbers cannot be drawn"
    assert "\u202e" not in text
    assert len(text) < 1e6


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda place: (place / "screen.json").unlink(), "holds no run.json, screen.json, relax.json or dft.json"),
        (lambda place: (place / "survivors.parquet").unlink(), "has no survivors.parquet yet"),
        (lambda place: (place / "survivors.parquet").write_text("x"), "cannot be read"),
        (lambda place: (place / "screen.json").write_text("{"), "is no JSON"),
        (lambda place: (place / "screen.json").write_text("[" * 100_000), "is no JSON"),
        (
            lambda place: (place / "funnel.json").write_text('{"rules": [{"name": 1}]}'),
            "is not what druse screen writes",
        ),
        (lambda place: (place / "funnel.json").write_text("[]"), "must hold an object"),
    ],
)
def test_errors_say_what_is_wrong(
    tmp_path: Path, as_users_call: None, spoil: Callable[[Path], object], message: str
) -> None:
    write_screening(tmp_path / "screened", 20)
    spoil(tmp_path / "screened")
    with pytest.raises(InputError, match=re.escape(message)):
        build_report([tmp_path / "screened"])


def test_no_folder() -> None:
    with pytest.raises(InputError, match="needs at least one folder"):
        build_report([])


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["druse", "report", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.mark.usefixtures("as_users_call")
def test_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folders: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "a" / "report.html"
    options = ("--out", out, "--jobs", 1, "--window", "band_gap=0.2")
    assert run(monkeypatch, folders["place"] / "screened", *options, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["file"] == str(out)
    assert said["bytes"] == out.stat().st_size
    assert (said["entries"], said["survivors"]) == (300, int((folders["screen"]["rule"] == "").sum()))
    assert said["hits"][1]["window"] == "± 0.2 eV"
    assert run(monkeypatch, folders["place"] / "screened", *options) == 0
    assert "300 entries" in capsys.readouterr().out
    assert run(monkeypatch, tmp_path, *options) == 1
    assert "holds no run.json" in " ".join(capsys.readouterr().err.split())
    assert run(monkeypatch, folders["place"] / "screened", "--out", out, "--window", "band_gap") == 1
    assert "must be NAME=VALUE" in " ".join(capsys.readouterr().err.split())
