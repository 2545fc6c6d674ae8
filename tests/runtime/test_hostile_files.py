"""Files that were made to harm: each ends in a refusal with a reason, in bounded memory, and its neighbours go on."""

import gzip
import json
import os
import signal
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pymatgen", reason="reads CIF")
pytest.importorskip("ase", reason="reads extended XYZ")

from pymatgen.core import Lattice, Structure
from test_candidates import read, sample

from druse import InputError
from druse.candidates import Entries, Limits, pieces, understand, write_entries
from druse.io import cif_text

SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
GOOD = SALT.to(fmt="cif")
MEBIBYTE = 1 << 20


def cif(sites: str, *, a: str = "5", gamma: str = "90", operations: tuple[str, ...] = ("x,y,z",)) -> str:
    lines = ["data_x", f"_cell_length_a {a}", "_cell_length_b 5", "_cell_length_c 5", "_cell_angle_alpha 90"]
    lines += ["_cell_angle_beta 90", f"_cell_angle_gamma {gamma}", "loop_", "_symmetry_equiv_pos_as_xyz"]
    lines += [f"'{operation}'" for operation in operations]
    lines += ["loop_", "_atom_site_type_symbol", "_atom_site_label", "_atom_site_occupancy"]
    return "\n".join([*lines, *(f"_atom_site_fract_{axis}" for axis in "xyz"), sites, ""])


def many_sites(n: int) -> str:
    return "\n".join(f"Na Na{k} 1 0.{k % 89:03d} 0.{k // 89:03d} 0.2" for k in range(n))


OPERATIONS = tuple(f"x+{k}/997,y,z" for k in range(10_000))
BAD_CIF = {
    "ten megabytes": (cif("Na Na1 1 0 0 0") + "# a comment\n" * 900_000, "longer than 2,000,000 characters"),
    "one line": ("data_" + "x" * 10_000_000, "longer than 2,000,000 characters|no block of CIF"),
    "no atoms": (cif(""), "it has no atoms|_atom_site|sites|structure"),
    "nan cell": (cif("Na Na1 1 0 0 0", a="nan"), "."),
    "infinite cell": (cif("Na Na1 1 0 0 0", a="inf"), "."),
    "nan place": (cif("Na Na1 1 nan 0 0"), "not finite"),
    "tiny cell": (cif("Na Na1 1 0 0 0", a="0.02"), "shorter than 0.5 Å"),
    "huge cell": (cif("Na Na1 1 0 0 0", a="1e9"), "longer than 1,000 Å"),
    "flat cell": (cif("Na Na1 1 0 0 0", gamma="0.05"), "flat|threshold"),
    "unknown element": (cif("Qq Qq1 1 0 0 0\nNa Na1 1 0.5 0.5 0.5"), "'Qq' is no element"),
    "deuterium": (cif("D D1 1 0 0 0"), "an isotope, not an element"),
    "label only": (cif("? D1 1 0 0 0"), "is no element"),
    "half an atom": (cif("Na Na1 0.5 0 0 0"), "partly occupied"),
    "two in one": (cif("Na Na1 0.5 0 0 0\nK K1 0.5 0 0 0"), "partly occupied"),
    "twice the same": (cif("Na Na1 1 0 0 0\nNa Na2 1 0 0 0"), "Occupancy 2.0 exceeded|fall together"),
    "too many sites": (cif(many_sites(10_000)), "10,000 sites, more than 500"),
    "too many operations": (cif(many_sites(400), operations=OPERATIONS), "10,000 symmetry operations, more than 192"),
    "too many atoms": (cif(many_sites(400), operations=("x,y,z", "-x,y+1/3,z")), "800 atoms, more than 500"),
    "empty lines": (cif("Na Na1 nonsense 0 x 0") + "\n" * 1_900_000, "."),
    "quotes": (cif("Na Na1 1 0 0 0") + "_x " + "'" * 1_900_000, "a line with quotes"),
    "nonsense": ("\0\1\2" * 1000, "no block of CIF"),
    "empty": ("", "no block of CIF"),
}


@pytest.mark.parametrize("name", BAD_CIF)
def test_a_bad_cif_among_good_ones(tmp_path: Path, name: str) -> None:
    text, reason = BAD_CIF[name]
    for place, content in (("a", GOOD), ("b", text), ("c", GOOD)):
        (tmp_path / f"{place}.cif").write_text(content)
    entries = read(tmp_path)
    assert entries.ids == ("a", "b", "c")
    assert_refused(entries, 1, reason)


def assert_refused(entries: Entries, places: int | list[int], reason: str) -> None:
    """These alone, with a reason of one line."""
    wanted = [places] if isinstance(places, int) else places
    assert [k for k, failure in enumerate(entries.failures) if failure] == wanted, entries.failures
    for place in wanted:
        (pytest.fail if "\n" in entries.failures[place] else len)(entries.failures[place])
        assert any(part in entries.failures[place] for part in reason.split("|")) or reason == "."
        assert entries.crystals.n_atoms[place] == 0
        assert np.isfinite(entries.crystals.cells[place]).all()


def test_long_rows_of_a_table(tmp_path: Path) -> None:
    long = "x" * 3_000_000
    spread = "\n".join(['quoted ""word""', "x" * 1000] * 2000)
    rows = ["id,cif,note", f'a,"{GOOD}",', f'b,"{long}",', f"c,{long}", f'd,"{spread}\n",z', f'e,"{GOOD}","{spread}"']
    rows += [f'f,"{GOOD}",,,,,', "g", f'h,"{GOOD}",']
    (tmp_path / "table.csv").write_text("\n".join(rows))
    entries = read(tmp_path / "table.csv")
    assert len(entries) == 8
    assert_refused(entries, [1, 2, 3, 4, 6], ".")
    assert [entries.ids[k] for k in (0, 5, 6, 7)] == ["a", "f", "g", "h"]
    assert all("longer than 2,000,000 characters" in entries.failures[k] for k in (1, 2, 3, 4))


BAD_FRAMES = {
    "not finite": ('1\nLattice="nan 0 0 0 4 0 0 0 4"\nNa 0 0 0\n', "not finite"),
    "nan place": ('1\nLattice="4 0 0 0 4 0 0 0 4"\nNa nan 0 0\n', "not finite"),
    "no atoms": ('0\nLattice="4 0 0 0 4 0 0 0 4"\n', "it has no atoms"),
    "flat": ('1\nLattice="4 0 0 8 0 0 0 0 4"\nNa 0 0 0\n', "its cell is flat"),
    "unknown": ('1\nLattice="4 0 0 0 4 0 0 0 4"\nXx 0 0 0\n', "'Xx' is no element"),
    "number": ('1\nLattice="4 0 0 0 4 0 0 0 4" Properties=Z:I:1:pos:R:3\n119 0 0 0\n', "of no element"),
    "columns": ('1\nLattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3:x:R:1000000000\nNa 0 0 0\n', "numbers"),
    "short": ('1\nLattice="4 0 0 0 4 0 0 0 4"\nNa 0 0\n', "fewer than 4 columns"),
    "deep": ('1\nLattice="4 0 0 0 4 0 0 0 4" x="_JSON ' + "[" * 100_000 + '"\nNa 0 0 0\n', "."),
    "far": ('1\nLattice="4 0 0 0 4 0 0 0 4"\nNa 1e200 0 0\n', "a million cells away"),
    "many": ("600\n" + 'Lattice="4 0 0 0 4 0 0 0 4"\n' + "Na 0 0 0\n" * 600, "600 atoms, more than 500"),
    "long line": ('1\nLattice="4 0 0 0 4 0 0 0 4" x=' + "y" * 3_000_000 + "\nNa 0 0 0\n", "longer than 2,000,000"),
    "no cell": ("1\n\nNa 0 0 0\n", "it has no cell"),
}
FRAME = '1\nLattice="4 0 0 0 4 0 0 0 4" x=1\nNa 0 0 0\n'


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_a_bad_frame_among_good_ones(tmp_path: Path, name: str) -> None:
    text, reason = BAD_FRAMES[name]
    (tmp_path / "a.extxyz").write_text(FRAME + text + FRAME)
    assert_refused(read(tmp_path / "a.extxyz"), 1, reason)


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        ("1000000000", "1,000,000,000 atoms, more than 500; the rest"),
        ("many", "begin with its number of atoms"),
        ("-3", "got '-3'"),
        ("300", "the file ends before the last"),
    ],
)
def test_a_frame_without_a_count_ends_its_file(tmp_path: Path, first: str, reason: str) -> None:
    (tmp_path / "a.extxyz").write_text(f"{FRAME}{first}\n{FRAME}")
    (tmp_path / "b.extxyz").write_text(FRAME)
    entries = read(tmp_path / "a.extxyz", tmp_path / "b.extxyz")
    assert len(entries) == 3
    assert_refused(entries, 1, reason)


BAD_POSCARS = {
    "a billion atoms": ("x\n1\n4 0 0\n0 4 0\n0 0 4\nNa\n1000000000\nDirect\n0 0 0\n", "1,000,000,000 atoms, more than"),
    "negative": ("x\n1\n4 0 0\n0 4 0\n0 0 4\nNa\n-1\nDirect\n0 0 0\n", "how many atoms"),
    "unknown": ("x\n1\n4 0 0\n0 4 0\n0 0 4\nXx\n1\nDirect\n0 0 0\n", "'Xx' is no element"),
    "flat": ("x\n0\n4 0 0\n0 4 0\n0 0 4\nNa\n1\nDirect\n0 0 0\n", "shorter|flat"),
    "zero": ("x\n1\n4 0 0\n0 4 0\n0 0 4\nNa\n0\nDirect\n", "it has no atoms"),
    "short": ("x\n1\n4 0 0\n", "ends before its atoms"),
    "long": ("x" * 3_000_000, "longer than 2,000,000"),
    "names": ("x\n1\n4 0 0\n0 4 0\n0 0 4\nNa\n1 1\nDirect\n0 0 0\n0 0 0.5\n", "1 elements, but 2 counts|fewer|."),
}


@pytest.mark.parametrize("name", BAD_POSCARS)
def test_a_bad_poscar_among_good_ones(tmp_path: Path, name: str) -> None:
    text, reason = BAD_POSCARS[name]
    good = "x\n1\n4 0 0\n0 4 0\n0 0 4\nNa\n1\nDirect\n0 0 0\n"
    for place, content in (("a", good), ("b", text), ("c", good)):
        (tmp_path / f"{place}.vasp").write_text(content)
    assert_refused(read(tmp_path), 1, reason)


def changed(**changes: Any) -> str:
    return json.dumps({**SALT.as_dict(), **changes})


BAD_JSON = {
    "deep": ("[" * 100_000 + "]" * 100_000, "deep"),
    "long": (json.dumps(["x" * 3_000_000]), "longer than 2,000,000"),
    "numbers": (json.dumps({"x": [0] * 2_000_000}), "longer than 2,000,000"),
    "a big number": ('{"lattice": ' + "9" * 100_000 + ', "sites": []}', "."),
    "no structure": (json.dumps({"a": 1}), "it is no structure"),
    "a number": ("17", "no structure"),
    "nan": (changed(lattice={"matrix": [[float("nan")] * 3] * 3}), "not finite"),
    "occupancy": (changed(sites=[{"species": [{"element": "Na", "occu": 0.5}], "abc": [0, 0, 0]}]), "partly occupied"),
    "element": (changed(sites=[{"species": [{"element": "Xx", "occu": 1}], "abc": [0, 0, 0]}]), "'Xx' is no element"),
    "element that is none": (
        changed(sites=[{"species": [{"element": [1], "occu": 1}], "abc": [0, 0, 0]}]),
        "no element",
    ),
    "class": (changed(**{"@module": "os", "@class": "system", "sites": []}), "it has no atoms"),
    "many": (changed(sites=[{}] * 501), "501 atoms, more than 500"),
    "not closed": ('{"lattice": [', "."),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_bad_json_among_good(tmp_path: Path, name: str) -> None:
    text, reason = BAD_JSON[name]
    good = json.dumps(SALT.as_dict())
    (tmp_path / "a.jsonl").write_text("\n".join([good, text, good]))
    assert_refused(read(tmp_path / "a.jsonl"), 1, f"{reason}|RecursionError" if name == "deep" else reason)
    if name != "not closed":
        (tmp_path / "a.json").write_text(f"[{good},\n{text}, {good}]")
        assert_refused(read(tmp_path / "a.json"), 1, reason)
        (tmp_path / "b.json").write_text(f'{{"x": {good},\n"}}": {text}, "\\"z": {good}}}')
        entries = read(tmp_path / "b.json")
        assert_refused(entries, 1, reason)
        assert entries.ids == ("x", "}" if "longer" not in reason and name != "deep" else "entry 1", '"z')


def test_json_that_is_none_or_goes_on(tmp_path: Path) -> None:
    good = json.dumps(SALT.as_dict())
    for text in ("", "17", "nonsense"):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(InputError, match="holds no list or object of structures"):
            read(tmp_path / "a.json")
    (tmp_path / "a.json").write_text(f"[{good}] {good}")
    assert_refused(read(tmp_path / "a.json"), 1, "more after the end")
    (tmp_path / "a.json").write_text(f"[{good}, {good[:-40]}")
    assert_refused(read(tmp_path / "a.json"), 1, "the file ends inside")
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(InputError, match="holds no list or object of structures"):
        read(tmp_path / "a.json")


def archive_of(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name) if name.startswith("/") else name, content, zipfile.ZIP_DEFLATED)
    return path


NAMES = ["../x.cif", "/etc/x.cif", "a/../../x.cif", "C:/x.cif", "..\\x.cif"]


@pytest.mark.parametrize("name", NAMES)
def test_a_member_whose_name_leads_out(tmp_path: Path, name: str) -> None:
    path = archive_of(tmp_path / "a.zip", [("a.cif", GOOD.encode()), (name, GOOD.encode()), ("c.cif", GOOD.encode())])
    before = sorted(tmp_path.rglob("*"))
    assert_refused(read(path), 1, "its name leads out of the archive")
    assert sorted(tmp_path.rglob("*")) == before


def test_members_that_expand_or_are_no_files(tmp_path: Path) -> None:
    inner = archive_of(tmp_path / "inner.zip", [("x.cif", GOOD.encode())]).read_bytes()
    members = [("a.cif", GOOD.encode()), ("zeros.cif", bytes(50 * MEBIBYTE)), ("blank.cif", b" " * MEBIBYTE)]
    path = archive_of(tmp_path / "a.zip", [*members, ("in.zip", inner), ("b.tar.gz", b"x"), ("c.cif", GOOD.encode())])
    entries = read(path)
    assert_refused(entries, [1, 2, 3, 4], ".")
    for place, reason in (
        (1, "52,428,800 bytes, more than"),
        (2, "100 times"),
        (3, "archive within"),
        (4, "archive within"),
    ):
        assert reason in entries.failures[place]


def test_methods_without_bounds_and_ciphers(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.cif", GOOD)
        archive.writestr("b.cif", GOOD, zipfile.ZIP_LZMA)
        archive.writestr("c.cif", GOOD, zipfile.ZIP_BZIP2)
        archive.writestr("d.cif", GOOD)
    assert_refused(read(path), [1, 2], "it is compressed by method")
    content = bytearray(path.read_bytes())
    for signature, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.rindex(signature) + place] |= 1
    path.write_bytes(content)
    assert "encrypted" in read(path).failures[3]


def forged(path: Path, change: Callable[[bytearray, list[int]], None]) -> Path:
    """An archive of three files, whose list of members is changed; given are its bytes and the places of the list."""
    members = [("a.cif", GOOD.encode()), ("b.cif", bytes(5 * MEBIBYTE)), ("c.cif", GOOD.encode())]
    content = bytearray(archive_of(path, members).read_bytes())
    places = [k for k in range(len(content)) if content[k : k + 4] == b"PK\1\2"]
    change(content, places)
    path.write_bytes(content)
    return path


def test_sizes_that_are_not_true(tmp_path: Path) -> None:
    def small(content: bytearray, places: list[int]) -> None:
        struct.pack_into("<I", content, places[1] + 24, 1000)

    entries = read(forged(tmp_path / "a.zip", small))
    assert_refused(entries, 1, "broken")

    def small_and_checked(content: bytearray, places: list[int]) -> None:
        struct.pack_into("<I", content, places[1] + 24, 1000)
        struct.pack_into("<I", content, places[1] + 16, zlib.crc32(bytes(1000)))

    entries = read(forged(tmp_path / "a.zip", small_and_checked))
    assert_refused(entries, 1, ".")  # what is left of it is no CIF

    def longer(content: bytearray, places: list[int]) -> None:
        struct.pack_into("<I", content, places[0] + 24, 1_999_999)

    entries = read(forged(tmp_path / "a.zip", longer))
    assert_refused(entries, [0, 1], "not the 1,999,999 that|more than 2,000,000")


def test_members_that_overlap(tmp_path: Path) -> None:
    def same_place(content: bytearray, places: list[int]) -> None:
        for place in places[1:]:
            content[place + 42 : place + 46] = content[places[0] + 42 : places[0] + 46]

    entries = read(forged(tmp_path / "a.zip", same_place))
    assert_refused(entries, [0, 1, 2], "shares its bytes with another member|5,242,880 bytes")


def test_a_list_of_members_that_is_too_long(tmp_path: Path) -> None:
    path = archive_of(tmp_path / "a.zip", [(f"{k}.cif", b"x") for k in range(100)])
    with pytest.raises(InputError, match=r"a\.zip is broken, or no zip archive"):
        read(path, limits=Limits(directory=1000))
    assert len(read(path)) == 100


def test_an_archive_that_holds_too_much_in_all(tmp_path: Path) -> None:
    path = archive_of(tmp_path / "a.zip", [(f"{k}.cif", GOOD.encode()) for k in range(10)])
    entries = read(path, limits=Limits(expanded=3 * len(GOOD)))
    assert_refused(entries, 4, "the rest is not read")
    assert len(entries) == 5


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.zip", b"PK\3\4 nothing", r"a\.zip is broken, or no zip archive"),
        ("a.zip", b"PK\5\6" + bytes(18), "holds no CIF files"),
        ("a.csv.gz", gzip.compress(b"id,cif\nx,y\n" * 1000, mtime=0)[:-10], r"a\.csv\.gz is broken"),
        ("a.csv.gz", b"\x1f\x8b" + b"x" * 100, r"a\.csv\.gz is broken"),
        ("a.parquet", b"PAR1 no", r"a\.parquet"),
        ("a.db", b"SQLite format 3\0 and nothing", r"a\.db is broken, or no data base of ASE"),
        ("a.db", b"", r"a\.db is no data base of ASE"),
        ("a.pt", b"no", "by PyTorch before 1.6"),
        ("a.docx", b"", "of no known kind"),
    ],
)
def test_sources_that_are_broken_as_a_whole(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_links_and_pipes_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret.cif").write_text(GOOD)
    (folder / "a.cif").write_text(GOOD)
    (folder / "b.cif").symlink_to(tmp_path / "secret.cif")
    (folder / "c.cif").symlink_to(folder / "a.cif")
    (folder / "d.cif").mkdir()
    (folder / "e.cif").symlink_to(folder / "e.cif")
    (folder / "f").symlink_to(tmp_path)
    (tmp_path / "POSCAR").write_text("x")
    (folder / "z.cif").write_text(GOOD)
    entries = read(folder)
    assert [name for name, ok in zip(entries.ids, entries.ok, strict=True) if ok] == ["a", "c", "z"]
    reasons = dict(zip(entries.ids, entries.failures, strict=True))
    assert "leads out of the folder" in reasons["b"]
    assert "leads out of the folder" in reasons["f"]


def test_a_pipe_in_a_folder_does_not_hold(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.cif")
    (tmp_path / "b.cif").write_text(GOOD)
    assert_refused(read(tmp_path), 0, "is not a file")


def test_names_that_no_file_can_hold(tmp_path: Path) -> None:
    good = {**SALT.as_dict(), "properties": {"\ud800": 1, "note": "\udfff", "id": "\ud800\x1b[2J\n" + "x" * 1000}}
    (tmp_path / "a.json").write_text(json.dumps([good, {"\ud800": 1}]))
    (tmp_path / os.fsdecode(b"\xff.cif")).write_text("data_\ud800".encode("utf-8", "replace").decode())
    entries = read(tmp_path / "a.json", tmp_path)
    assert entries.ids[0].startswith("?\x1b[2J\nxxx")
    assert len(entries.ids[0]) == 1000
    assert entries.ids[2] == "?"
    assert entries.failures[1].isprintable()
    assert (entries.columns["?"][0], entries.columns["note"][0]) == (1.0, "?")
    write_entries(tmp_path / "b.parquet", entries)
    assert read(tmp_path / "b.parquet").ids == entries.ids


def test_columns_beyond_all_measure(tmp_path: Path) -> None:
    facts = " ".join(f"a{k}=1" for k in range(5000))
    (tmp_path / "a.extxyz").write_text(FRAME.replace("x=1", facts) + FRAME.replace("x=1", f"x={'y' * 5000} z=1e999"))
    entries = read(tmp_path / "a.extxyz")
    assert entries.failures == ("", "")
    assert len(entries.columns) == 1000
    assert sum(column.nbytes for column in entries.columns.values()) < 100_000


def test_a_limit_of_time(tmp_path: Path) -> None:
    """An entry that takes too long is refused. This one takes seconds, in which a library may swallow one error."""
    operations = tuple(f"x+{k}/29,y,z" for k in range(24))
    (tmp_path / "a.cif").write_text(cif(many_sites(200), operations=operations))
    (piece,) = pieces([tmp_path])
    assert "not done after 0.1 s" in understand(piece, seconds=0.1).failures[0]
    assert "atoms, more than 500" in understand(piece, seconds=None).failures[0]
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


MEMORY = """
import sys
from druse.candidates import read_entries
n = bad = 0
for entries in read_entries(sys.argv[1:], n_jobs=1):
    n += len(entries)
    bad += sum(map(bool, entries.failures))
(peak,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]  # ru_maxrss knows the parent's too
print(n, bad, int(peak.split()[1]) // 1024)
"""


def measured(*sources: Path) -> tuple[int, int, int]:
    """Entries, failures, and the most mebibytes that a process took which read them."""
    child = subprocess.run(
        [sys.executable, "-c", MEMORY, *map(str, sources)], capture_output=True, text=True, check=True
    )
    n, bad, memory = map(int, child.stdout.split())
    return n, bad, memory


def test_bombs_in_little_memory(tmp_path: Path) -> None:
    """Each would be gigabytes; together they take no more than what reading a good file takes, and some."""
    (tmp_path / "good.cif").write_text(GOOD)
    _, _, usual = measured(tmp_path / "good.cif")
    with gzip.open(tmp_path / "bomb.csv.gz", "wb") as file:
        file.write(b"id,cif\n" + f'a,"{GOOD}"\n'.encode())
        for _ in range(25):
            file.write(bytes(8 * MEBIBYTE))
    with gzip.open(tmp_path / "lines.extxyz.gz", "wb") as file:
        file.write(FRAME.encode() + b"1000000000\n")
        for _ in range(25):
            file.write(b"\n" * 8 * MEBIBYTE)
    with gzip.open(tmp_path / "deep.json.gz", "wb") as file:
        for _ in range(25):
            file.write(b"[" * 8 * MEBIBYTE)
    archive_of(tmp_path / "a.zip", [(f"{k}.cif", bytes(1_900_000)) for k in range(300)])
    (tmp_path / "atoms.extxyz").write_text(FRAME + "1000000000\n" + FRAME)
    (tmp_path / "atoms.vasp").write_text(BAD_POSCARS["a billion atoms"][0])
    (tmp_path / "sites.cif").write_text(BAD_CIF["too many sites"][0])
    (tmp_path / "operations.cif").write_text(BAD_CIF["too many operations"][0])
    (tmp_path / "long.cif").write_text(cif("Na Na1 1 0 0 0") + "x" * 100_000_000)
    names = ["bomb.csv.gz", "lines.extxyz.gz", "deep.json.gz", "a.zip", "atoms.extxyz", "atoms.vasp", "sites.cif"]
    n, bad, memory = measured(*(tmp_path / name for name in (*names, "operations.cif", "long.cif", "good.cif")))
    assert (n, bad) == (2 + 2 + 1 + 300 + 2 + 1 + 1 + 1 + 1 + 1, 1 + 1 + 1 + 300 + 1 + 1 + 1 + 1 + 1)
    assert memory < usual + 150


@pytest.mark.slow
def test_a_hundred_thousand_entries_in_little_memory(tmp_path: Path) -> None:
    """A source is a stream: the whole of it, a hundred megabytes and more, is never in memory."""
    text = cif_text(sample(tmp_path, 1).crystals[0], "x")
    n, found = 100_000, {}
    script = MEMORY.replace("read_entries(sys.argv[1:], n_jobs=1)", "pieces(sys.argv[1:])").replace(
        "import read_entries", "import pieces").replace("sum(map(bool, entries.failures))", "0")  # fmt: skip
    with (tmp_path / "a.csv").open("w") as file:
        file.write("id,cif\n")
        file.writelines(f'{k},"{text}"\n' for k in range(n))
    with (tmp_path / "a.extxyz").open("w") as file:
        lines = f'1\nLattice="4 0 0 0 4 0 0 0 4" x="{"y" * 1000}"\nNa 0 0 0\n'
        file.writelines(lines for _ in range(n))
    with (tmp_path / "a.json").open("w") as file:
        file.write("[" + ",".join([json.dumps(SALT.as_dict())] * (n // 10)) + "]")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for k in range(n):
            archive.writestr(f"{k}.cif", text)
    for name in ("a.csv", "a.extxyz", "a.json", "a.zip"):
        child = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / name)], capture_output=True, text=True, check=True
        )
        count, _, found[name] = map(int, child.stdout.split())
        assert count == (n // 10 if name == "a.json" else n)
        (tmp_path / name).unlink()
    assert max(found["a.csv"], found["a.extxyz"], found["a.json"]) < 150
    assert found["a.zip"] < 350  # the list of its members
