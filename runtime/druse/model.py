"""A bundle on a backend: the networks of Con-CDVAE on plain arrays, for those who embed or probe it.

=====================  ======================================================================
paper                  here
=====================  ======================================================================
Condition, eqs 10, 11  ``Model.condition``: properties and z to z_con
eps_theta, eq. 14      ``Model.prior_terms`` once for each latent, then ``Model.prior_step``
heads on z_con         ``Model.heads``: atom count, lattice, composition
Predictor, eq. 12      ``Model.predict``: properties from z
s_theta                ``Model.score``: the decoder at a noise level
=====================  ======================================================================
"""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from druse import _gemnet
from druse._arrays import CrystalIds, Float32, Int32, Latents, SpeciesLogits, Status, as_array
from druse._devices import Devices
from druse._networks import ROWS_TOGETHER, check_signatures, rows_in_parts, run_rows
from druse._onnx import float_tensors
from druse._prior import FORMULATION, ResidualMLP
from druse._resident import Resident
from druse._score import Score, Workspace, atom_forces, decoder_inputs, in_parts, plan, spec_graph
from druse.backends import Backend, OutOfMemoryError, ResidentBackend, Runner, open_backend, open_backends
from druse.bundle import Bundle, Network
from druse.conditions import encode
from druse.crystals import Crystals
from druse.errors import InputError
from druse.graphs import OUT_OF_MEMORY, Graph
from druse.sampling import ddpm_update
from druse.schedules import SamplingSchedule, ddpm_schedule

__all__ = ["HeadOutputs", "Model", "Score"]


_WAYS = 8
"""Where levels are skipped crystals begin at one of some fifteen, most at one of these many, and those that begin at
different levels are in different bins."""


class HeadOutputs(NamedTuple):
    """What the heads say of z_con.

    Attributes:
        n_atoms_logits: ``[crystals, max_atoms + 1]``, from 0 atoms on.
        n_atoms: ``[crystals]`` the most likely number, or the one that was given.
        lengths: ``[crystals, 3]`` Angstrom, of a cell with ``n_atoms``.
        angles: ``[crystals, 3]`` degrees.
        composition: ``[crystals, species]`` logits, hydrogen first.
    """

    n_atoms_logits: Float32[np.ndarray, "crystals counts"]
    n_atoms: Int32[np.ndarray, "crystals"]
    lengths: Float32[np.ndarray, "crystals 3"]
    angles: Float32[np.ndarray, "crystals 3"]
    composition: SpeciesLogits


class Model:
    """A Con-CDVAE that is ready to run. Methods may be called from several threads."""

    def __init__(self, bundle: Bundle, backend: Backend, *others: ResidentBackend) -> None:
        """Nothing is loaded yet.

        Args:
            bundle: that is open.
            backend: of every network.
            others: the same backend on other devices, for the score network.
        """
        self.bundle, self.backend, self._others = bundle, backend, others
        self.manifest = bundle.con_cdvae
        check_signatures(self.manifest, bundle.name)
        self._loading = threading.Lock()  # what is loaded at its first use is loaded once, whoever comes first
        self._runners: dict[str, Runner] = {}
        self._fused: dict[str, ResidualMLP] = {}
        self._gemnet: _gemnet.GemNetT | None = None
        self._devices: Devices | None = None
        self._work = Workspace()
        self._pool = ThreadPoolExecutor(backend.workers, "druse") if backend.workers > 1 else None

    @classmethod
    def open(
        cls,
        bundle: Any,
        *,
        backend: str | Backend = "auto",
        precision: str = "auto",
        n_threads: int = 0,
        devices: Sequence[str] = (),
    ) -> "Model":
        """A model from a bundle.

        Args:
            bundle: an opened one, or the path of a folder or ``.zip``.
            backend: a name (see `druse.backends`), or one that is open.
            precision: of products, for a backend given by name; ``auto``: see `druse.backends.PREFERRED`.
            n_threads: 0 for every core, for a backend given by name.
            devices: such as ``("cuda:0", "cuda:1")``, which share the crystals; none: the first. For a backend given
                by name.

        Raises:
            InputError: the bundle cannot be used; see `Bundle.open`. Or the backend has no such devices.
            DeviceError: the backend cannot run.
            MissingDependencyError: the backend's extra is not installed.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        if not isinstance(backend, str):
            if devices:
                raise InputError("`devices` cannot be given with a backend that is open; give its name")
            return cls(opened, backend)
        how: dict[str, Any] = {
            "precision": precision, "n_threads": n_threads, "stated": opened.con_cdvae.decoder.precisions
        }  # fmt: skip
        if devices:
            return cls(opened, *open_backends(backend, devices, **how))
        return cls(opened, open_backend(backend, **how))

    def runner(self, role: str) -> Runner:
        """A network by its role (see `ConCDVAEManifest.networks`), loaded at its first use."""
        with self._loading:
            if role not in self._runners:
                networks = self.manifest.networks
                if role not in networks:
                    raise InputError(f"{self.bundle.name} has no network {role!r}; it has {', '.join(networks)}")
                large = (role == "decoder" or role.endswith("/network")) and self.backend.device is None
                precision = self.backend.precision if large else "fp32"
                content = self.bundle.read(self._file(role, networks[role], precision))
                self._runners[role] = self.backend.load(content, networks[role], precision)
            return self._runners[role]

    def _file(self, role: str, network: Network, precision: str) -> str:
        """The one that states a precision, where the backend wants that."""
        if not self.backend.typed or precision in ("fp32", "tf32"):
            return network.file
        if precision not in network.precisions:
            raise InputError(
                f"{self.bundle.name} has no {role} with products in {precision}; build the bundle again with "
                f"--precision {precision}"
            )
        return network.precisions[precision]

    @property
    def devices(self) -> Devices | None:
        """The score network on the backend's devices; None where it has none."""
        backend = self.backend
        if not isinstance(backend, ResidentBackend) or backend.device is None:
            return None
        with self._loading:
            if self._devices is None:
                network, precision = self.manifest.decoder, backend.precision
                content, all_ = self.bundle.read(self._file("decoder", network, precision)), (backend, *self._others)
                residents = [Resident(one, content, network, precision, self.manifest) for one in all_]
                self._devices = Devices(residents, self.manifest, min(one.memory for one in all_))
            return self._devices

    @property
    def resident(self) -> Resident | None:
        """The score network on the first device, for those who measure it."""
        devices = self.devices
        return None if devices is None else devices.residents[0]

    @property
    def walkers(self) -> int:
        """Bins that are sampled side by side."""
        devices = self.devices
        return self.backend.workers if devices is None else len(devices)

    def together(self, schedule: SamplingSchedule) -> int:
        """Crystals that are wanted at once, to fill a device."""
        devices = self.devices
        return 1 if devices is None else devices.together(_WAYS if schedule.skip else 1)

    @property
    def ahead(self) -> int:
        """Times `together` that are begun besides those that are waited for, to keep everything busy meanwhile."""
        devices = self.devices
        return 2 if devices is None else 1 + len(devices)

    def bins(self, n_atoms: np.ndarray) -> list[range]:
        """Crystals in order, by their atom counts, that are evaluated together."""
        devices = self.devices
        if devices is not None:
            return devices.bins(n_atoms)
        return plan(n_atoms, self.manifest, self.backend.memory, self.backend.workers)

    def condition(self, values: Mapping[str, Any], z: Any) -> Latents:
        """z_con of latents and properties (eqs 10 and 11).

        Args:
            values: of every property of the manifest's ``conditions``, by name: numbers, class numbers or labels,
                formulas; one for all or one for each latent.
            z: ``[crystals, latent]``.

        Returns:
            ``[crystals, latent]``.

        Raises:
            InputError: a property is missing, unknown or out of range, or shapes do not fit.
        """
        z_ = self._latents("z", z)
        inputs = encode(self.manifest.conditions, values, len(z_))
        return self._run("condition", {**inputs, "z": z_})[0]

    def prior_terms(
        self, values: Mapping[str, Any], n: int, *, prior: str = "default"
    ) -> Float32[np.ndarray, "n terms"]:
        """What properties add to every layer of a prior, for `prior_step`.

        Args:
            values: as in `condition`, of the prior's properties.
            n: number of latents.
            prior: its name.
        """
        spec = self._prior(prior)
        return self._run(f"priors/{prior}/condition", encode(spec.conditions, values, n))[0]

    def prior_step(self, z: Any, terms: Any, step: int, *, prior: str = "default") -> Latents:
        """The noise that a prior predicts in latents of a step (eps_theta of eq. 14).

        Args:
            z: ``[crystals, latent]``.
            terms: ``[crystals, terms]`` from `prior_terms`.
            step: from 0 to the number of its betas less one, the last being almost pure noise.
            prior: its name.

        Returns:
            ``[crystals, latent]``.
        """
        n_steps = len(self._prior(prior).betas)
        if not 0 <= step < n_steps:
            raise InputError(f"`step` must be from 0 to {n_steps - 1}, got {step}")
        z_ = self._latents("z", z)
        terms_ = as_array("terms", terms, np.float32, len(z_), "terms")
        fused = self._fused_prior(prior)
        if fused is not None:
            return fused.eps(z_, terms_, step, n_threads=self.backend.workers)
        inputs = {"z": z_, "terms": terms_, "step": np.array([step], np.int32)}
        return self._run(f"priors/{prior}/network", inputs)[0]

    def denoise(
        self,
        z: Any,
        terms: Any,
        *,
        seed: int,
        crystal_ids: Any,
        prior: str = "default",
        steps: range | None = None,
    ) -> tuple[Latents, Status]:
        """The reverse process of a prior (eq. 4): `prior_step` and `druse.sampling.ddpm_update` in turns.

        Args:
            z: ``[crystals, latent]``, standard normal for the whole process.
            terms: ``[crystals, terms]`` from `prior_terms`.
            seed: of the run, see `druse.noise`.
            crystal_ids: ``[crystals]``, each latent's number in the run.
            prior: its name.
            steps: descending without gaps; None: all, from pure noise to a latent.

        Returns:
            The latents and a status word for each; one that would not be finite keeps the value it had.
        """
        schedule = ddpm_schedule(self._prior(prior).betas)
        steps = range(len(schedule.alpha) - 1, -1, -1) if steps is None else steps
        if steps.step != -1 or not steps or not 0 <= steps[-1] <= steps[0] < len(schedule.alpha):
            raise InputError(f"`steps` must descend by 1 within {len(schedule.alpha) - 1} to 0, got {steps}")
        z_ = self._latents("z", z)
        terms_ = as_array("terms", terms, np.float32, len(z_), "terms")
        ids: CrystalIds = as_array("crystal_ids", crystal_ids, np.uint64, len(z_))
        fused = self._fused_prior(prior)
        if fused is not None:
            n_threads, found = self.backend.workers, []
            for rows in rows_in_parts(len(z_), ROWS_TOGETHER * n_threads):  # between them, a person can stop it
                some = slice(rows.start, rows.stop)
                found.append(
                    fused.denoise(
                        z_[some], terms_[some], steps, schedule, seed=seed, crystal_ids=ids[some], n_threads=n_threads
                    )
                )
            if not found:
                return z_.copy(), np.zeros(0, np.uint32)
            return np.concatenate([z for z, _ in found]), np.concatenate([status for _, status in found])
        run, latents, status = self.runner(f"priors/{prior}/network"), z_.copy(), np.zeros(len(z_), np.uint32)

        def part(piece: range) -> None:
            rows = slice(piece.start, piece.stop)
            mine, own = latents[rows], terms_[rows]
            for t in steps:
                inputs = {"z": mine, "terms": own, "step": np.array([t], np.int32)}
                (eps,) = run_rows(run, self.manifest.priors[prior].network, inputs)
                mine, bits = ddpm_update(
                    mine,
                    eps,
                    alpha=float(schedule.alpha[t]),
                    alpha_bar=float(schedule.alpha_bar[t]),
                    noise_scale=float(schedule.sigma[t]),
                    seed=seed,
                    crystal_ids=ids[rows],
                    step=t,
                )
                status[rows] |= bits
            latents[rows] = mine

        for _ in in_parts(rows_in_parts(len(z_)), part, self._pool):
            pass
        return latents, status

    def heads(self, z_con: Any, *, n_atoms: Any = None) -> HeadOutputs:
        """Atom count, lattice and composition.

        Args:
            z_con: ``[crystals, latent]``.
            n_atoms: ``[crystals]`` atoms whose lattice is wanted; None: the most likely numbers.
        """
        z_ = self._latents("z_con", z_con)
        logits, lattice, composition = self._run("heads", {"z_con": z_})
        chosen = logits.argmax(1) if n_atoms is None else as_array("n_atoms", n_atoms, np.int32, len(z_))
        lengths = lattice[:, :3] * np.cbrt(chosen.astype(np.float32))[:, None]
        return HeadOutputs(logits, chosen.astype(np.int32), lengths, lattice[:, 3:], composition)

    def predict(self, z: Any) -> dict[str, Float32[np.ndarray, "crystals ..."]]:
        """Properties from latents, by name: scalars ``[crystals]`` in their unit, classes as probabilities.

        Raises:
            InputError: the model was trained without a Predictor, or ``z`` has another shape.
        """
        if self.manifest.predictor is None:
            raise InputError(f"{self.bundle.name} has no Predictor; rank by another model, or do not rank")
        outputs = self._run("predictor", {"z": self._latents("z", z)})
        return {spec.name: value for spec, value in zip(self.manifest.predicted, outputs, strict=True)}

    def project(self, z_con: Any) -> Float32[np.ndarray, "crystals atom"]:
        """What the decoder takes of z_con, which does not change from step to step: for ``latent`` of `score`."""
        return self._run("latent_projection", {"z_con": self._latents("z_con", z_con)})[0]

    def score(
        self, crystals: Crystals, z_con: Any, level: Any, *, latent: Any = None, graph: Graph | None = None
    ) -> Score:
        """The decoder at a noise level: sigma times the Cartesian score, and element logits.

        Args:
            crystals: noisy ones, with types from 1 to the number of species.
            z_con: ``[crystals, latent]``; None where ``latent`` is given.
            level: number of the noise level, 0 for the largest; one for all, or one for each crystal.
            latent: ``[crystals, atom]`` from `project`, for those who evaluate the same crystals at many levels.
            graph: of the crystals, if it is not to be found here: half edges with their incidence table.

        Raises:
            InputError: shapes, types or levels do not fit.
            OutOfMemoryError: one crystal alone needs more memory than there is.
        """
        n_levels, n_species = len(self.manifest.sigmas), self.manifest.n_species
        width = self.manifest.decoder.inputs[0].shape[1]
        latents = self.project(z_con) if latent is None else as_array("latent", latent, np.float32, "crystals", width)
        if len(latents) != len(crystals):
            raise InputError(f"`z_con` must have one row for each of the {len(crystals)} crystals, got {len(latents)}")
        each = np.full(len(crystals), level) if np.ndim(level) == 0 else level
        levels = as_array("level", each, np.int32, len(crystals))
        if len(levels) and not (levels.min() >= 0 and levels.max() < n_levels):
            raise InputError(f"`level` must be from 0 to {n_levels - 1}, got {levels.min()} to {levels.max()}")
        species = crystals.species
        if len(species) and not (species.min() >= 1 and species.max() <= n_species):
            raise InputError(
                f"`species` must be atomic numbers from 1 to {n_species}, got {species.min()} to {species.max()}"
            )
        devices = self.devices
        if graph is not None:
            if devices is not None:
                raise InputError(f"`graph` cannot be given on the backend {self.backend.name}, which finds its own")
            if not graph.is_half or not np.array_equal(graph.offsets, crystals.offsets):
                raise InputError("`graph` must have the crystals' offsets and half edges (symmetrise='union')")
            return self._evaluate(graph, species, latents, levels)
        self.ready()  # before threads start

        def part(piece: range) -> Score:
            first, last = crystals.offsets[piece.start], crystals.offsets[piece.stop]
            some = Crystals(
                crystals.frac[first:last],
                crystals.cells[piece.start : piece.stop],
                crystals.offsets[piece.start : piece.stop + 1] - first,
                species[first:last],
            )
            chosen = slice(piece.start, piece.stop)
            if devices is not None:
                return Score(*devices.on_any(lambda one: one.score(some, latents[chosen], levels[chosen])))
            return self._evaluate(spec_graph(some, self.manifest.graph), some.species, latents[chosen], levels[chosen])

        pool = self._pool if devices is None or len(devices) > 1 else None
        parts = list(in_parts(self.bins(crystals.n_atoms), part, pool))
        if not parts:
            return Score(np.zeros((0, 3), np.float32), np.zeros((0, n_species), np.float32), np.zeros(0, np.uint32))
        return Score(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def ready(self) -> None:
        """Load the score network, which threads would otherwise do each by itself at their first call."""
        if self.devices is None and self._fused_decoder() is None:
            self.runner("decoder")

    def _evaluate(self, graph: Graph, species: np.ndarray, latent: np.ndarray, level: np.ndarray) -> Score:
        if (graph.status & OUT_OF_MEMORY).any():
            raise OutOfMemoryError("no memory for the candidates of a crystal's graph")
        fused = self._fused_decoder()
        if fused is not None:
            return Score(*fused.score(graph, species, latent, level), graph.status.copy())
        inputs = decoder_inputs(graph, species, latent, level, self.manifest.graph, self._work)
        force, logits = self.runner("decoder")(inputs)
        return Score(atom_forces(graph, force), np.ascontiguousarray(logits[:-1]), graph.status.copy())

    def _latents(self, name: str, value: Any) -> Latents:
        latents: Latents = as_array(name, value, np.float32, "crystals", self.manifest.latent)
        return latents

    def _prior(self, name: str) -> Any:
        if name not in self.manifest.priors:
            known = ", ".join(map(repr, self.manifest.priors)) or "none"
            raise InputError(f"`prior` must be one of those of {self.bundle.name} ({known}), got {name!r}")
        return self.manifest.priors[name]

    def _fused_decoder(self) -> _gemnet.GemNetT | None:
        network = self.manifest.decoder
        if not self.backend.fused or network.formulation != _gemnet.FORMULATION:
            return None
        with self._loading:
            if self._gemnet is None:
                tensors = float_tensors(self.bundle.read(network.file))
                self._gemnet = _gemnet.GemNetT(tensors, self.manifest.graph, network.file)
            return self._gemnet

    def _fused_prior(self, name: str) -> ResidualMLP | None:
        network = self._prior(name).network
        if not self.backend.fused or network.formulation != FORMULATION:
            return None
        with self._loading:
            if name not in self._fused:
                self._fused[name] = ResidualMLP(float_tensors(self.bundle.read(network.file)), network.file)
            return self._fused[name]

    def _run(self, role: str, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """A network on rows, in pieces side by side."""
        return run_rows(self.runner(role), self.manifest.networks[role], inputs, self._pool)
