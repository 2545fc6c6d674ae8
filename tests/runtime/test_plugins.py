"""Commands of other packages: found, listed without what they need, and honest where it is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "pymatgen", "matplotlib", "lightning", "pyarrow", "ase", "scipy")

COMMANDS = '''
"""Two kinds of commands."""
import typer

def hello(name: str = "you") -> None:
    """Greet."""
    print("hello", name)

def needy() -> None:
    """Need what is not there."""
    import no_such_module

group = typer.Typer(help="Some commands.")
group.command()(hello)

@group.command()
def bye() -> None:
    """Part."""
    print("bye")
'''


def druse(
    *arguments: str, packages: Path | None = None, without: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """The command line in a process that sees the packages of a folder, and where some modules cannot be imported."""
    script = f"import sys; sys.modules.update(dict.fromkeys({without})); sys.argv[0] = 'druse'; import druse.cli as c; "
    script += "c.main()"
    environment = dict(os.environ, COLUMNS="200")
    if packages is not None:
        environment["PYTHONPATH"] = str(packages)
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A distribution as pip leaves it, with four entry points, one of which leads nowhere."""
    metadata = tmp_path / "greetings-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: greetings\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[druse.commands]\nhello = greetings:hello\npolite = greetings:group\nlost = greetings.gone:app\n"
        "needy = greetings:needy\n"
    )
    (tmp_path / "greetings.py").write_text(COMMANDS)
    return tmp_path


def test_functions_and_groups_join(packages: Path) -> None:
    text = druse("--help", packages=packages).stdout
    for word in ("doctor", "hello", "Greet.", "polite", "Some commands.", "lost", "data"):
        assert word in text
    assert druse("hello", "--name", "all", packages=packages).stdout == "hello all\n"
    assert druse("polite", "bye", packages=packages).stdout == "bye\n"


def test_one_that_cannot_be_loaded_harms_no_other(packages: Path) -> None:
    result = druse("lost", packages=packages)
    assert result.returncode == 1
    assert result.stderr.startswith(
        "error: the command 'lost' cannot be loaded from greetings.gone:app: No module named"
    )
    assert result.stderr.endswith("update or remove greetings\n")
    assert result.stderr.count("\n") == 1


def test_a_missing_module_is_one_line(packages: Path) -> None:
    result = druse("needy", packages=packages)
    assert (result.returncode, result.stderr) == (
        1,
        "error: this command needs no_such_module; pip install 'druse[export]'\n",
    )


def test_help_needs_and_brings_nothing_heavy() -> None:
    script = (
        "import sys, druse.cli as c\nsys.argv = ['druse', '--help']\n"
        f"try:\n    c.main()\nexcept SystemExit:\n    print([name for name in {HEAVY} if name in sys.modules])"
    )
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert child.stdout.splitlines()[-1] == "[]"
    for arguments in (["--help"], ["data", "--help"], ["data", "fetch", "--help"], ["data", "describe", "--help"]):
        result = druse(*arguments, without=HEAVY)
        assert result.returncode == 0, result.stderr
        assert "Usage: druse" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "missing", "message", "extra"),
    [
        (["data", "describe", "table.csv", "--no-cache"], "pymatgen", "reading structures needs pymatgen", "evaluate"),
        (["data", "describe", "table.csv"], "platformdirs", "finding the cache folder needs platformdirs", "evaluate"),
        (["data", "describe", "table.csv", "--out", "a.png"], "matplotlib", "drawing needs matplotlib", "export"),
        (["data", "split", "table.parquet", "--out", "parts"], "pyarrow", "reading Parquet needs pyarrow", "evaluate"),
    ],
)
def test_without_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], missing: str, message: str, extra: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("table.csv").write_text("material_id,cif\na,x\n")
    Path("table.parquet").write_bytes(b"PAR1")
    result = druse(*arguments, without=(missing, "torch"))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"error: {message}; pip install 'druse[{extra}]'\n"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    rows = "".join(f"{k},x\n" for k in range(20))
    (tmp_path / "table.csv").write_text("material_id,cif\n" + rows)
    (tmp_path / "parts").write_text("a file")
    result = druse("data", "split", str(tmp_path / "table.csv"), "--out", str(tmp_path / "parts"))
    assert result.returncode == 1
    assert result.stderr == f"error: {tmp_path / 'parts'}: file exists; give another name\n"


def test_a_name_that_a_terminal_would_obey_is_shown_harmless(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "druse", "bundle", "show", str(tmp_path / "red\x1b[31m.zip")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "red?[31m.zip does not exist" in done.stderr
    assert "\x1b[31m" not in done.stderr.replace("error:", "")
