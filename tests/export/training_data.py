"""Small crystals and small networks for the tests of training."""

from pathlib import Path

import numpy as np

from druse import Crystals
from druse.conditions import ClassProperty, ScalarProperty
from druse_export.data import CrystalTable
from druse_export.models.con_cdvae import ConCDVAEConfig
from druse_export.models.dimenet import DimeNetConfig
from druse_export.models.gemnet import GemNetConfig
from druse_export.models.prior import PriorConfig
from druse_export.training.settings import PriorSettings, VAESettings

ENERGY = ScalarProperty("energy", 3.5, 7.5, 0.5, "eV")
PARITY = ClassProperty("parity", 2)


def rock_salts(n: int, seed: int) -> CrystalTable:
    """Binary rock-salt and CsCl cells with random elements and lengths; the "energy" is the length."""
    rng = np.random.default_rng(seed)
    lengths = rng.uniform(4.0, 7.0, n)
    parity = rng.integers(0, 2, n)
    fcc, cubic = (np.ones((3, 3)) - np.eye(3)) / 2, np.eye(3) * 0.7
    cells = np.where(parity[:, None, None] == 0, fcc, cubic) * lengths[:, None, None]
    crystals = Crystals(
        np.tile([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]], (n, 1)),
        cells,
        np.arange(n + 1) * 2,
        rng.choice([1, 3, 4, 5, 6, 7, 8, 9], 2 * n).astype(np.int32),
    )
    return CrystalTable(crystals, tuple(map(str, range(n))), {"energy": lengths, "parity": parity.astype(np.float64)})


SMALL = ConCDVAEConfig(
    conditions=(ENERGY, PARITY),
    predicted=(ENERGY, PARITY),
    max_atoms=4,
    latent=16,
    hidden=16,
    condition_width=16,
    n_levels=10,
    encoder=DimeNetConfig(
        hidden=16, n_blocks=1, interaction=8, basis=4, out=16, latent=16, n_output_layers=1, cutoff=5.0, max_neighbors=6
    ),
    decoder=GemNetConfig(
        latent=16, time=8, atom=16, edge=16, triplet=8, rbf=8, cbf=8, bilinear=8, n_radial=16, n_spherical=3,
        n_blocks=1, n_after_skip=1, n_atom=1, cutoff=6.0, max_neighbors=8,
    ),
)  # fmt: skip

VAE = VAESettings(model=SMALL, epochs=3, steps_per_epoch=6, batch_size=8, ema=0.9, draws=2, teacher_forcing=1.0)
PRIOR = PriorSettings(
    prior=PriorConfig(conditions=(ENERGY, PARITY), latent=16, condition=16, time=8, n_steps=50),
    epochs=4,
    batch_size=32,
    ema=0.9,
)


def write_csv(path: Path, table: CrystalTable) -> Path:
    """The table as a CSV with CIF, as users have it."""
    import csv

    from pymatgen.core import Lattice, Structure

    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["material_id", "cif", *table.properties])
        for b, crystal in enumerate(table.crystals):
            structure = Structure(Lattice(crystal.cells[0]), crystal.species.tolist(), crystal.frac)
            writer.writerow([table.ids[b], structure.to(fmt="cif"), *(v[b] for v in table.properties.values())])
    return path
