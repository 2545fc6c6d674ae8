"""The order of modules is a rule: each imports only what stands before it; and what `import druse` brings."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

from druse import graphs

NAMES = """
errors _dependencies _files _folders _shares _limits _columns _processes _arrays _native _driver lattice crystals
elements conditions _texts _json_parts _archives _optimade _rows _structures tables bravais control _manifest _onnx
bundle _graph graphs basis _device _cuda backends schedules noise strategies sampling samplers _prior _gemnet _score
_rooms _resident _devices _networks model _request _descent _trajectory _shards generate io _ranked _stored _run_file
runs __init__ _torch_file _array_sources _entries candidates properties verify _peak _stages bench validity
_fingerprints _workable symmetry _mappings _matching duplicates novelty evaluate rules _judge _together _screened
_asked _in_memory screening _calculators _fire _relaxing _relaxed_files relax _potcars _vasp_inputs _vasprun
_comparison _vasp_folder _parity dft _reported _population _figures _changes _page _wording report campaign _probes
doctor cli __main__
"""
ORDER = NAMES.split()
"""A private module stands just before the public one that it belongs to, the package after what it names."""

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "runtime" / "druse"
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(file: Path) -> str:
    """The module, or the package, of Druse that a file belongs to; the package itself is ``__init__``."""
    first = file.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_modules(source: str) -> set[str]:
    """The modules of Druse that a source file imports, at any depth."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "druse"}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "druse":
                found |= {f"druse.{alias.name}" for alias in node.names if alias.name != "__version__"}
            elif node.module and node.module.startswith("druse."):
                found.add(node.module)
    return {name.split(".")[1] if "." in name else "__init__" for name in found}


def is_module(name: str) -> bool:
    return name == "__init__" or (PACKAGE / f"{name}.py").is_file() or (PACKAGE / name).is_dir()


def test_the_reader_of_imports() -> None:
    source = "import druse.cli.main\nfrom druse import _native, Graph\ndef f():\n    from druse.noise import normal\n"
    assert imported_modules(source) == {"cli", "_native", "Graph", "noise"}


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_a_module_imports_only_what_stands_before_it(file: Path) -> None:
    own = module_of(file)
    assert own in ORDER, f"{own} has no place in the order of modules"
    for name in imported_modules(file.read_text()):
        assert is_module(name), f"{own} imports {name} from the package instead of from its module"
        assert name in ORDER, f"{own} imports {name}, which has no place in the order of modules"
        inside = name == own and file.parent != PACKAGE
        assert inside or ORDER.index(name) < ORDER.index(own), f"{own} must not import {name}"


def test_type_checkers_need_what_is_installed() -> None:
    """A package that is not there is Any to them, in silence, wherever its names are used."""
    (needed,) = re.findall(r"^dependencies = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), re.M)
    known = {re.split("[>=]", name)[0] for name in ast.literal_eval(needed)} | {"druse", *sys.stdlib_module_names}
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
                continue
            for line in (part for part in node.body if isinstance(part, ast.Import | ast.ImportFrom)):
                names = [line.module or ""] if isinstance(line, ast.ImportFrom) else [part.name for part in line.names]
                assert {name.split(".")[0] for name in names} <= known, f"{file.name} shows a type checker {names}"


def test_importing_druse_brings_nothing_heavy() -> None:
    heavy = ["torch", "pymatgen", "ase", "typer", "rich", "onnxruntime", "scipy", "ray", "tensorrt"]
    script = f"import sys, druse; print([name for name in {heavy} if name in sys.modules])"
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "[]"


def test_importing_druse_is_quick() -> None:
    """Below 0.3 s, a bar of the project; NumPy is three quarters of it. The best of several, for others may be busy."""
    script = "import time; start = time.perf_counter(); import druse; print(time.perf_counter() - start)"
    times = [
        float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
        for _ in range(8)
    ]
    assert min(times) < 0.3


def test_importing_druse_changes_nothing() -> None:
    script = (
        "import os, random, numpy as np\n"
        "state = lambda: (os.getcwd(), dict(os.environ), random.getstate(), str(np.random.get_state()))\n"
        "before = state()\n"
        "import druse, druse.basis, druse.noise, druse.sampling\n"
        "from druse import _native\n"
        "print(before == state(), _native.library.cache_info().currsize)"
    )
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert child.stdout.split() == ["True", "0"], "and the native library is loaded at the first call only"
    assert child.stderr == ""


@pytest.mark.parametrize(
    "file", [f for f in FILES if f.parent == PACKAGE and not f.name.startswith("_")], ids=module_of
)
def test_public_names_exist(file: Path) -> None:
    module = importlib.import_module(f"druse.{module_of(file)}")
    assert len(set(module.__all__)) == len(module.__all__)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_types_are_checked_in_these_tests() -> None:
    """The import hook of ``conftest.py`` is at work; without it every annotation could be wrong unseen."""
    with pytest.raises(jaxtyping.TypeCheckError):
        graphs.describe_status("not a number")  # type: ignore[arg-type]
    with pytest.raises(jaxtyping.TypeCheckError):
        graphs.GraphBuffers(*[np.zeros(3)] * 8)  # type: ignore[arg-type]
