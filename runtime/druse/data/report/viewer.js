// Crystals as balls and sticks on a plain canvas: any number of them live at once, and none needs WebGL.
const BOND = 1.15; // a bond is shorter than this times the sum of the covalent radii
const EDGE = 0.02; // fraction of a cell within which an atom is shown at the opposite face too
const AXES = ["#d64545", "#3f9142", "#3b6fd6"];

const add = (a, b) => [a[0] + b[0], a[1] + b[1], a[2] + b[2]];
const scale = (a, s) => [a[0] * s, a[1] * s, a[2] * s];
const minus = (a, b) => [a[0] - b[0], a[1] - b[1], a[2] - b[2]];
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const times = (m, v) => [dot(m[0], v), dot(m[1], v), dot(m[2], v)];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const product = (m, n) => m.map((row) => [0, 1, 2].map((j) => row[0] * n[0][j] + row[1] * n[1][j] + row[2] * n[2][j]));
const unit = (a) => scale(a, 1 / (Math.hypot(...a) || 1));
const turn = (i, j, angle) => {
  const m = [[1, 0, 0], [0, 1, 0], [0, 0, 1]], c = Math.cos(angle), s = Math.sin(angle);
  m[i][i] = c; m[j][j] = c; m[i][j] = -s; m[j][i] = s;
  return m;
};
// c upwards, and a little from above and from the side; screen: x right, y up, z towards the eye
const START = product(turn(1, 2, 0.3), product(turn(0, 2, 0.42), [[0, 1, 0], [0, 0, 1], [1, 0, 0]]));

function contents(crystal, repeats) {
  const c = crystal.cell, cell = [c.slice(0, 3), c.slice(3, 6), c.slice(6, 9)];
  const place = (f) => add(add(scale(cell[0], f[0]), scale(cell[1], f[1])), scale(cell[2], f[2]));
  const atoms = [];
  crystal.species.forEach((z, k) => {
    const f = crystal.frac.slice(3 * k, 3 * k + 3).map((v) => (v > 1 - EDGE ? v - 1 : v));
    const shifts = f.map((v) => Array.from({ length: repeats + (v < EDGE ? 1 : 0) }, (_, i) => i));
    for (const i of shifts[0]) for (const j of shifts[1]) for (const l of shifts[2]) {
      if (atoms.length < 4000) atoms.push({ z, at: place([f[0] + i, f[1] + j, f[2] + l]) });
    }
  });
  const bonds = [];
  if (atoms.length <= 1500) {
    for (let i = 0; i < atoms.length; i++) for (let j = 0; j < i; j++) {
      const away = minus(atoms[i].at, atoms[j].at), far = Math.hypot(...away);
      if (far > 0.4 && far < BOND * (data.elements[atoms[i].z][2] + data.elements[atoms[j].z][2])) bonds.push([i, j]);
    }
  }
  const lines = [];
  for (let axis = 0; axis < 3; axis++) {
    const [p, q] = [(axis + 1) % 3, (axis + 2) % 3];
    for (let i = 0; i <= repeats; i++) for (let j = 0; j <= repeats; j++) for (let k = 0; k < repeats; k++) {
      const from = [0, 0, 0];
      from[axis] = k; from[p] = i; from[q] = j;
      lines.push([place(from), cell[axis]]);
    }
  }
  const centre = place([repeats / 2, repeats / 2, repeats / 2]);
  const reach = Math.max(1, ...atoms.map((a) => Math.hypot(...minus(a.at, centre)) + 0.5), ...[0, 1].flatMap((i) => [0, 1].flatMap((j) => [0, 1].map((k) => Math.hypot(...minus(place([i * repeats, j * repeats, k * repeats]), centre))))));
  return { cell, atoms, bonds, lines, centre, reach };
}

function mixed(colour, other, share) {
  const parts = (text) => [1, 3, 5].map((k) => parseInt(text.slice(k, k + 2), 16));
  const [a, b] = [parts(colour), parts(other)];
  return `rgb(${a.map((v, k) => Math.round(v + (b[k] - v) * share)).join(" ")})`;
}

const sprites = new Map();
function ball(z) {
  if (!sprites.has(z)) {
    const size = 128, made = document.createElement("canvas"), colour = data.elements[z][1];
    made.width = made.height = size;
    const pen = made.getContext("2d"), r = size / 2 - 2;
    const shade = pen.createRadialGradient(size * 0.36, size * 0.32, size * 0.02, size / 2, size / 2, r);
    shade.addColorStop(0, mixed(colour, "#ffffff", 0.75));
    shade.addColorStop(0.32, mixed(colour, "#ffffff", 0.12));
    shade.addColorStop(0.75, mixed(colour, "#000000", 0.16));
    shade.addColorStop(1, mixed(colour, "#000000", 0.5));
    pen.fillStyle = shade;
    pen.beginPath();
    pen.arc(size / 2, size / 2, r, 0, 2 * Math.PI);
    pen.fill();
    sprites.set(z, made);
  }
  return sprites.get(z);
}

class View {
  constructor(canvas, wheelAlways) {
    this.canvas = canvas;
    this.crystal = null;
    this.bonds = true;
    this.repeats = 1;
    this.pointers = new Map();
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    });
    canvas.addEventListener("pointermove", (event) => this.moved(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.pointers.delete(event.pointerId));
    canvas.addEventListener("wheel", (event) => {
      if (!wheelAlways && !event.ctrlKey) return;
      event.preventDefault();
      this.nearer(Math.exp(-event.deltaY * 0.0015));
    }, { passive: false });
    canvas.addEventListener("dblclick", () => this.reset());
    canvas.addEventListener("keydown", (event) => {
      const turns = { ArrowLeft: [0, 2, 0.12], ArrowRight: [0, 2, -0.12], ArrowUp: [1, 2, 0.12], ArrowDown: [1, 2, -0.12] };
      if (turns[event.key]) this.turned(turn(...turns[event.key]));
      else if (event.key === "+" || event.key === "=") this.nearer(1.15);
      else if (event.key === "-") this.nearer(1 / 1.15);
      else return;
      event.preventDefault();
    });
    new ResizeObserver(() => this.draw()).observe(canvas);
    this.reset();
  }

  show(crystal) {
    this.crystal = crystal;
    this.filled = crystal && contents(crystal, this.repeats);
    this.reset();
  }

  reset() {
    this.rotation = START;
    this.zoom = 1;
    this.draw();
  }

  along(axis) {
    const { cell } = this.filled;
    const eye = unit(cell[axis]), beside = cell[(axis + 1) % 3];
    const right = unit(minus(beside, scale(eye, dot(beside, eye))));
    this.rotation = [right, cross(eye, right), eye];
    this.draw();
  }

  moved(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const now = [event.clientX, event.clientY], others = [...this.pointers].filter(([id]) => id !== event.pointerId);
    this.pointers.set(event.pointerId, now);
    if (others.length) {
      const other = others[0][1], far = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]);
      if (far(before) > 0) this.nearer(far(now) / far(before));
      return;
    }
    const speed = 3.2 / Math.min(this.canvas.clientWidth, this.canvas.clientHeight);
    this.turned(product(turn(1, 2, (now[1] - before[1]) * speed), turn(0, 2, -(now[0] - before[0]) * speed)));
  }

  turned(by) {
    this.rotation = product(by, this.rotation);
    this.draw();
  }

  nearer(factor) {
    this.zoom = Math.min(12, Math.max(0.3, this.zoom * factor));
    this.draw();
  }

  draw() {
    const { canvas } = this, width = canvas.clientWidth, height = canvas.clientHeight;
    if (!width || !this.filled) return;
    const dense = Math.min(2, devicePixelRatio || 1);
    if (canvas.width !== Math.round(width * dense) || canvas.height !== Math.round(height * dense)) {
      canvas.width = Math.round(width * dense);
      canvas.height = Math.round(height * dense);
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(dense, 0, 0, dense, 0, 0);
    pen.clearRect(0, 0, width, height);
    const ink = getComputedStyle(document.documentElement).getPropertyValue("--muted");
    const { cell, atoms, bonds, lines, centre, reach } = this.filled;
    const size = (this.zoom * Math.min(width, height) * 0.47) / reach, eye = 6 * reach;
    const seen = (point) => {
      const [x, y, z] = times(this.rotation, minus(point, centre)), near = eye / (eye - z);
      return { x: width / 2 + x * size * near, y: height / 2 - y * size * near, z, near };
    };
    const shown = [];
    for (const [from, edge] of lines) {
      for (let k = 0; k < 6; k++) {
        const a = seen(add(from, scale(edge, k / 6))), b = seen(add(from, scale(edge, (k + 1) / 6)));
        shown.push({ z: (a.z + b.z) / 2, a, b, colour: ink, width: 1 });
      }
    }
    const places = atoms.map((atom) => seen(atom.at));
    if (this.bonds) {
      for (const [i, j] of bonds) {
        const [a, b] = [places[i], places[j]], middle = seen(scale(add(atoms[i].at, atoms[j].at), 0.5));
        for (const [end, atom] of [[a, atoms[i]], [b, atoms[j]]]) {
          shown.push({ z: (end.z + middle.z) / 2, a: end, b: middle, colour: mixed(data.elements[atom.z][1], "#000000", 0.18), width: 0.2 * size * end.near, shine: mixed(data.elements[atom.z][1], "#ffffff", 0.35) });
        }
      }
    }
    places.forEach((place, k) => shown.push({ z: place.z + 0.01, place, ball: atoms[k].z }));
    shown.sort((p, q) => p.z - q.z);
    for (const part of shown) {
      if (part.place) {
        const r = 0.46 * data.elements[part.ball][2] * size * part.place.near;
        pen.drawImage(ball(part.ball), part.place.x - r, part.place.y - r, 2 * r, 2 * r);
        continue;
      }
      pen.strokeStyle = part.colour;
      pen.lineWidth = Math.max(1, part.width);
      pen.lineCap = part.shine ? "butt" : "round";
      pen.beginPath();
      pen.moveTo(part.a.x, part.a.y);
      pen.lineTo(part.b.x, part.b.y);
      pen.stroke();
      if (!part.shine) continue;
      pen.strokeStyle = part.shine;
      pen.lineWidth = part.width * 0.3;
      pen.stroke();
    }
    pen.font = "600 11px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    cell.map((edge, k) => [times(this.rotation, unit(edge)), k]).sort((p, q) => p[0][2] - q[0][2]).forEach(([to, k]) => {
      const long = height < 180 ? 10 : 16, x = 1.9 * long, y = height - 1.9 * long;
      pen.strokeStyle = pen.fillStyle = AXES[k];
      pen.lineWidth = 2;
      pen.beginPath();
      pen.moveTo(x, y);
      pen.lineTo(x + long * to[0], y - long * to[1]);
      pen.stroke();
      pen.fillText("abc"[k], x + (long + 7) * to[0], y - (long + 7) * to[1]);
    });
  }
}

const views = [];
for (const canvas of document.querySelectorAll(".card canvas")) {
  const view = new View(canvas, false), crystal = data.structures[canvas.dataset.place];
  if (crystal) view.show(crystal);
  views.push(view);
}

const dialog = document.getElementById("viewer");
let large = null;
function enlarge(place) {
  const crystal = data.structures[place], row = data.table.rows[place];
  if (!crystal) return;
  const cell = (key) => row[data.table.columns.findIndex((column) => column.key === key)];
  const title = document.getElementById("viewer-title");
  title.replaceChildren();
  for (const part of String(cell("formula")).split(/(\d+)/)) el(title, /^\d+$/.test(part) ? "sub" : "span", {}, part);
  document.getElementById("viewer-id").textContent = [cell("id"), cell("spacegroup"), `${cell("n_atoms")} atoms`].filter(Boolean).join(" · ");
  const box = document.getElementById("viewer-legend");
  box.replaceChildren();
  for (const z of [...new Set(crystal.species)].sort((a, b) => a - b)) {
    const item = el(box, "span", { class: "item" });
    el(item, "span", { class: "dot" }).style.background = data.elements[z][1];
    item.append(data.elements[z][0]);
  }
  dialog.showModal();
  large = large || new View(document.getElementById("viewer-canvas"), true);
  large.show(crystal);
}
for (const button of document.querySelectorAll(".enlarge")) button.addEventListener("click", () => enlarge(Number(button.dataset.place)));
document.getElementById("viewer-close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
for (const button of document.querySelectorAll("[data-view]")) {
  button.addEventListener("click", () => {
    const what = button.dataset.view;
    if (what === "in" || what === "out") large.nearer(what === "in" ? 1.25 : 0.8);
    else if (what === "reset") large.reset();
    else large.along("abc".indexOf(what));
  });
}
document.getElementById("viewer-bonds").addEventListener("change", (event) => { large.bonds = event.target.checked; large.draw(); });
document.getElementById("viewer-super").addEventListener("change", (event) => {
  large.repeats = event.target.checked ? 2 : 1;
  large.show(large.crystal);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { for (const view of large ? [...views, large] : views) view.draw(); });
