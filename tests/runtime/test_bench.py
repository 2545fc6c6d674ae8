"""``druse bench`` and what is behind it: that it runs, and that nothing is missing in what it says."""

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="what runs bundles")

from druse import Bundle, Generator, InputError, SamplingSchedule
from druse import _gemnet as gemnet
from druse._onnx import check_network, float_tensors
from druse._peak import peak_gflops, product_graph
from druse.backends import PREFERRED, open_backend
from druse.bench import Report, measure, random_crystals
from druse.bundle import Network, Tensor
from druse.graphs import radius_graph
from druse.schedules import SCHEDULES

SHORT = SamplingSchedule(method="ancestral", n_levels=2)
PARTS = {"graph", "bases", "network", "update", "step"}


def measured(backend: str, precision: str = "fp32") -> Report:
    generator = Generator(backend=backend, precision=precision, n_threads=2)
    return measure(generator, n_crystals=(2, 3), schedule=SHORT, peak=False, seconds=0.01)


def complete(report: dict[str, Any], backend: str, precision: str) -> None:
    assert (report["backend"], report["precision"]) == (backend, precision)
    assert [step["crystals"] for step in report["steps"]] == [2, 3]
    for step in report["steps"]:
        assert set(step["milliseconds"]) == PARTS
        assert all(spent > 0 for part, spent in step["milliseconds"].items() if part != "bases")
        assert step["atoms"] == 10 * step["crystals"]
        assert 2 < 1e3 * step["gflop"] / step["directed_edges"] < 3.5
        assert step["gflops"] == pytest.approx(1e3 * step["gflop"] / step["milliseconds"]["network"])
    assert {(speed["schedule"], speed["crystals"]) for speed in report["speeds"]} == {
        (name, n) for name in SCHEDULES for n in (2, 3)
    }
    faithful = next(speed for speed in report["speeds"] if speed["schedule"] == "faithful")
    assert faithful["evaluations"] == 5000
    assert faithful["per_second"] == pytest.approx(2 / (5 * report["steps"][0]["milliseconds"]["step"]))
    assert report["sampled"]["crystals"] == report["sampled"]["good"] == 3
    assert report["sampled"]["evaluations"] == 2
    assert report["sampled"]["per_second"] == pytest.approx(3 / report["sampled"]["seconds"])


def test_on_cores() -> None:
    report = measured("ort-cpu").to_dict()
    complete(report, "ort-cpu", "fp32")
    for step in report["steps"]:
        assert step["milliseconds"]["bases"] is None
        assert step["room"] is step["captured"] is step["array_bytes"] is step["device_bytes"] is None


def test_networks_that_have_no_native_code() -> None:
    report = measured("ort-cpu", "fp16").to_dict()
    complete(report, "ort-cpu", "fp16")
    assert all(step["milliseconds"]["bases"] > 0 for step in report["steps"])


def test_on_a_device() -> None:
    report = measured("ort-host").to_dict()
    complete(report, "ort-host", "fp32")
    for step in report["steps"]:
        assert step["milliseconds"]["bases"] > 0
        assert step["room"]["crystals"] > step["crystals"]
        assert step["captured"]
        room = step["room"]
        assert step["array_bytes"] > 4 * room["atoms"] * room["degree"] ** 2 * 7, "the Legendre blocks alone"
        assert step["device_bytes"] is None, "the host's free memory is everybody's"


def test_the_command() -> None:
    command = [sys.executable, "-m", "druse", "bench", "--crystals", "1", "--schedule", "none", "--threads", "1"]
    child = subprocess.run([*command, "--backend", "ort-cpu", "--json"], capture_output=True, text=True, check=True)
    report = json.loads(child.stdout)
    assert report["peak_gflops"] > 0
    assert report["steps"][0]["share_of_peak"] == pytest.approx(report["steps"][0]["gflops"] / report["peak_gflops"])
    assert report["sampled"] is None
    child = subprocess.run([*command, "--backend", "ort-cpu"], capture_output=True, text=True, check=True)
    for text in ("in large products", "faithful", "5,000", "1 at once", "network"):
        assert text in child.stdout


@pytest.mark.usefixtures("as_users_call")
def test_what_cannot_be_measured() -> None:
    generator = Generator(n_threads=1)
    with pytest.raises(InputError, match=r"must be whole numbers from 1 to 1,000,000, got \[0\]"):
        measure(generator, n_crystals=(0,))
    with pytest.raises(InputError, match="must be one of faithful"):
        measure(generator, n_crystals=(1,), schedule="fast")


@pytest.mark.parametrize("stated", [None, "fp16", "bf16"])
def test_the_graph_of_products(stated: Any) -> None:
    content = product_graph(6, 3, stated)
    check_network(content, "products")
    onnx = pytest.importorskip("onnx", reason="what checks ONNX files")
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    if stated == "bf16":
        return  # ONNX Runtime's CPU provider has no such products
    tensors = [Tensor(name=name, dtype="float32", shape=(6, 6)) for name in "xy"]
    network = Network(file="products", inputs=(tensors[0],), outputs=(tensors[1],))
    x = np.random.default_rng(0).random((6, 6), np.float32)
    (y,) = open_backend("ort-cpu", n_threads=1).load(content, network, "fp32")({"x": x})
    assert np.allclose(y, x @ x @ x @ x, rtol=1e-5 if stated is None else 1e-2)


@pytest.mark.parametrize(("backend", "precision"), [("ort-cpu", "fp32"), ("ort-cpu", "fp16"), ("ort-host", "fp32")])
def test_a_peak(backend: str, precision: str) -> None:
    assert peak_gflops(open_backend(backend, precision=precision, n_threads=2), n=64) > 0


def test_operations_are_those_of_every_product() -> None:
    """Counted layer by layer; and of three times the crystals, three times as many."""
    manifest = Bundle.embedded().con_cdvae
    sizes = gemnet.sizes_of(float_tensors(Bundle.embedded().read(manifest.decoder.file)), manifest.graph)
    crystals, spec = random_crystals(2), manifest.graph
    graph = radius_graph(
        crystals.frac, crystals.cells, crystals.offsets, cutoff=spec.cutoff, max_neighbors=spec.max_neighbors,
        mode="exact", symmetrise="union",
    )  # fmt: skip
    n, edges, pairs = 20, int(graph.degree.sum()), int((graph.degree.astype(int) ** 2).sum())
    s = sizes
    half = s.n_radial * (3 * s.rbf + s.cbf * s.n_spherical + s.edge) + s.n_blocks * 2 * s.rbf * s.edge
    square = s.edge**2
    head = square * (1 + 2 * s.n_atom) + s.edge * s.rbf
    block = square * (3 + 2 * (s.n_before_skip + s.n_after_skip + s.n_concat))
    block += s.edge * s.triplet + s.cbf * s.triplet * s.bilinear + 2 * s.bilinear * s.edge
    atom = s.edge * s.atom + 2 * s.n_atom * s.atom**2 + 2 * s.atom * s.edge
    products = half * edges / 2 + edges * (head * (s.n_blocks + 1) + block * s.n_blocks)
    products += n * (atom * s.n_blocks + 2 * s.atom * s.edge + s.atom * s.n_species)
    sums = s.n_blocks * (s.n_spherical * s.triplet * (pairs + s.cbf * edges) + s.edge * edges)
    assert gemnet.flops(sizes, graph.degree) == pytest.approx(2 * (products + sums))
    assert gemnet.flops(sizes, np.tile(graph.degree, 3)) == pytest.approx(6 * (products + sums))


def test_the_default_precision() -> None:
    assert open_backend("ort-cpu", n_threads=1).precision == "fp32"
    assert all("fp32" in preferred or "tf32" in preferred for preferred in PREFERRED.values()), "which every bundle has"
