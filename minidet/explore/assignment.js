// The view of the assignment explorer: what a hand does on the picture, and what the kernel says about it.
//
// Nothing about assignment is computed here. The Store holds what a person can set (objects, strategies, dials, steps)
// and sends it; the answer says which slots to mark, and how. Boxes follow the hand at once, marks follow the kernel.

const HANDLE = 6; // pixels around a corner or side in which it can be grabbed
const HANDLES = [[0, 0], [0.5, 0], [1, 0], [1, 0.5], [1, 1], [0.5, 1], [0, 1], [0, 0.5]]; // places on the box
const CURSORS = ["nwse", "ns", "nesw", "ew", "nwse", "ns", "nesw", "ew"];
const MOST_UNDO = 200;
const MOST_STAMPS = 4000; // in memory; a few KB each
const NO_VALUE = 255;

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

// ---- state ----------------------------------------------------------------------------------------------------------

/** What a person has set and what the kernel answered; one for each widget, shared by all its views. */
class Store {
  constructor(model) {
    this.model = model;
    this.scene = model.get("scene");
    this.channel = new Channel(model);
    this.views = new Set();
    this.undo = [];
    this.held = false; // while a hand holds a box, its place is the hand's, not the kernel's
    this.waiting = false; // for the objects of another picture
    this.drawn = 0; // sequence number of the answer that `answer` is
    this.error = null;
    this.silence = null;
    this.channel.listeners.add({
      answered: (seq, mine) => {
        this.error = this.silence = null;
        this.drawn = mine ? seq : this.drawn;
        this.take();
        // Where nothing newer was set meanwhile, the kernel has the last word: it keeps boxes and dials in their ranges.
        if (!mine || (!this.channel.newest && !this.held)) this.adopt();
        this.changed();
      },
      failed: (error) => { this.error = error; this.silence = null; this.changed(); },
      silent: (text) => { this.silence = text; this.changed(); },
    });
    this.take();
    this.adopt();
  }

  /** Read the traits. */
  take() {
    this.answer = this.model.get("answer");
    this.arrays = unpack(this.answer.layout, this.model.get("numbers"));
    const ground = this.model.get("ground");
    if (ground !== this.groundSeen) {
      this.groundSeen = ground;
      this.ground = unpack(ground.layout, this.model.get("places"));
      this.strides = ground.strides;
    }
    const picture = this.model.get("picture");
    if (picture !== this.pictureSeen) {
      this.pictureSeen = picture;
      pictureOf(this.model).then((bitmap) => { this.bitmap = bitmap; this.changed(); });
    }
  }

  /** Make the state that of the answer. */
  adopt() {
    const { image, selected, hover, panels } = this.answer;
    this.state = {
      image, selected, hover,
      boxes: Array.from({ length: this.arrays.labels.length }, (_, i) => [...this.arrays.boxes.subarray(4 * i, 4 * i + 4)]),
      labels: [...this.arrays.labels],
      panels: panels.map(({ model, rule, dials, step, hidden }) => ({ model, rule, dials: [...dials], step, hidden: [...hidden], moved: null })),
    };
    this.waiting = false;
  }

  get size() {
    const [height, width] = this.scene.images[this.state.image];
    return { width, height };
  }

  changed(words = true) {
    for (const view of this.views) view.refresh(words);
  }

  /** Remember the objects as they are, for undo. Called before a hand changes them. */
  remember() {
    const { image, boxes, labels, selected } = this.state;
    this.undo.push({ image, boxes: boxes.map((box) => [...box]), labels: [...labels], selected });
    if (this.undo.length > MOST_UNDO) this.undo.shift();
  }

  /** The state was changed: show it, and ask the kernel about it. */
  ask() {
    this.channel.ask((seq) => {
      for (const view of this.views) view.tell("asked", seq);
      const { image, selected, hover, boxes, labels, panels } = this.state;
      const state = { image, selected, hover, panels };
      const buffers = this.waiting ? [] : [new Float32Array(boxes.flat()).buffer, new Int32Array(labels).buffer];
      return [state, buffers];
    });
    for (const view of this.views) view.setBusy(true);
    this.changed(!this.held); // while a box is dragged, words and tables follow with the answer
  }

  setBox(index, box) {
    const { width, height } = this.size;
    this.state.boxes[index] = box;
    const least = this.scene.smallest_side;
    for (const [low, high, extent] of [[0, 2, width], [1, 3, height]]) {
      box[low] = clamp(box[low], 0, extent - least);
      box[high] = clamp(box[high], box[low] + least, extent);
    }
    this.ask();
  }

  /** Move a box; it stops at the border of the picture. */
  moveBox(index, [x1, y1, x2, y2], dx, dy) {
    const { width, height } = this.size;
    dx = clamp(dx, -x1, width - x2);
    dy = clamp(dy, -y1, height - y2);
    this.setBox(index, [x1 + dx, y1 + dy, x2 + dx, y2 + dy]);
  }

  add(box, label) {
    if (this.state.boxes.length >= this.scene.most_objects) {
      this.error = { text: `There are ${this.scene.most_objects} objects; more do not fit into this explorer.`, details: "" };
      this.changed();
      return;
    }
    this.remember();
    this.state.boxes.push(box);
    this.state.labels.push(label);
    this.state.selected = this.state.boxes.length - 1;
    this.setBox(this.state.selected, box);
  }

  delete(index) {
    if (index < 0) return;
    this.remember();
    this.state.boxes.splice(index, 1);
    this.state.labels.splice(index, 1);
    this.state.selected = Math.min(index, this.state.boxes.length - 1);
    this.ask();
  }

  deleteAll() {
    if (!this.state.boxes.length) return;
    this.remember();
    Object.assign(this.state, { boxes: [], labels: [], selected: -1 });
    this.ask();
  }

  undoLast() {
    const last = this.undo.pop();
    if (!last) return;
    Object.assign(this.state, last);
    this.waiting = false;
    this.ask();
  }

  showImage(image) {
    Object.assign(this.state, { image, boxes: [], labels: [], selected: -1, hover: null });
    this.waiting = true; // the kernel knows which objects are on it
    this.ask();
  }

  select(index) {
    if (index !== this.state.selected) {
      this.state.selected = index;
      this.ask();
    }
  }

  hover(panel, slot) {
    const [oldPanel, oldSlot] = this.state.hover ?? [-1, -1];
    if (slot < 0 ? this.state.hover !== null : panel !== oldPanel || slot !== oldSlot) {
      this.state.hover = slot < 0 ? null : [panel, slot];
      this.ask();
    }
  }

  name(index) {
    return `${index + 1} ${this.scene.classes[this.state.labels[index]]}`;
  }

  colours(index) {
    return this.scene.palette[index % this.scene.palette.length];
  }
}

// ---- drawing --------------------------------------------------------------------------------------------------------

const GLYPHS = { o: "●", s: "■", "^": "▲", D: "◆", v: "▼", P: "✚", X: "✖" }; // the same shapes in text

/** The outline of a level's mark around (0, 0), side by side with `MARKS` of minidet/draw/palette.py. */
function outline(context, shape, side) {
  const r = side / 2;
  context.beginPath();
  const polygon = (points) => {
    points.forEach(([px, py], i) => (i ? context.lineTo(px * r, py * r) : context.moveTo(px * r, py * r)));
    context.closePath();
  };
  if (shape === "o") context.arc(0, 0, r, 0, 2 * Math.PI);
  else if (shape === "s") context.rect(-r, -r, side, side);
  else if (shape === "^") polygon([[0, -1], [1, 1], [-1, 1]]);
  else if (shape === "v") polygon([[0, 1], [1, -1], [-1, -1]]);
  else if (shape === "D") polygon([[0, -1.2], [1.2, 0], [0, 1.2], [-1.2, 0]]);
  else {
    const t = 0.36; // a plus; turned by 45 degrees for "X"
    const plus = [[-t, -1], [t, -1], [t, -t], [1, -t], [1, t], [t, t], [t, 1], [-t, 1], [-t, t], [-1, t], [-1, -t], [-t, -t]];
    polygon(shape === "P" ? plus : plus.map(([a, b]) => [(a - b) * 0.75, (a + b) * 0.75]));
  }
}

function cross(context, side) {
  const r = side / 2;
  context.beginPath();
  context.moveTo(-r, -r); context.lineTo(r, r);
  context.moveTo(r, -r); context.lineTo(-r, r);
}

/** Stroke the present path twice: dark and wide, then light or coloured, so that it can be seen on any picture. */
function stroke(context, colour, width, rim = "#000000", dash = []) {
  context.strokeStyle = rim;
  context.lineWidth = width + 1.6;
  context.stroke();
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.setLineDash(dash);
  context.stroke();
  context.setLineDash([]);
}

/** The colour between best (0) and worst (1), as `heat` of minidet/draw/palette.py. */
function heatColour(colours, share) {
  const place = clamp(share, 0, 1) * (colours.length - 1);
  const first = Math.min(Math.floor(place), colours.length - 2);
  const parts = [1, 3, 5].map((at) => {
    const [a, b] = [first, first + 1].map((i) => parseInt(colours[i].slice(at, at + 2), 16));
    return Math.round(a + (b - a) * (place - first));
  });
  return `rgb(${parts.join(",")})`;
}

/** Side of a slot's mark for the side of its cell, both in pixels of the screen; as `mark_size` in Python. */
const markSize = (cell) => clamp(0.62 * cell, 5, 17);
const NUMBERED = 11; // marks from this size on carry a number
const LISTED = 14; // marks of lists are at least so large, for their rank

/** The picture in the pixels of a canvas, so that drawing it in every frame is only copying. */
function scaled(bitmap, canvas) {
  const made = new OffscreenCanvas(canvas.width, canvas.height);
  const context = made.getContext("2d");
  context.imageSmoothingEnabled = canvas.width < 6 * bitmap.width; // single pixels are to be seen as squares
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, made.width, made.height);
  return made;
}

/** Draw one panel: picture, objects, marks of the kernel's answer. `scale` is pixels of the screen for one of the picture. */
function drawPanel(context, store, index, scale, backdrop) {
  const { state, answer, arrays } = store;
  const { width, height } = store.size;
  if (backdrop) context.drawImage(backdrop, 0, 0, width * scale, height * scale);
  const panel = answer.panels[index];
  if (!panel || answer.image !== state.image) return;
  const unowned = new Set(panel.unowned);
  const marked = state.boxes.length === arrays.labels.length; // else the answer is about other objects
  state.boxes.forEach((box, i) => drawBox(context, store, i, box, scale, marked && unowned.has(i), i === state.selected));
  drawMarks(context, store, index, panel, scale);
  state.boxes.forEach((box, i) => drawTag(context, store, i, box, scale, marked && unowned.has(i)));
  if (state.hover && state.hover[0] === index) drawHovered(context, store, panel, state.hover[1], scale);
}

function drawBox(context, store, index, [x1, y1, x2, y2], scale, lost, selected) {
  const rectangle = [x1 * scale, y1 * scale, (x2 - x1) * scale, (y2 - y1) * scale];
  context.beginPath();
  context.rect(...rectangle);
  context.globalAlpha = 0.95;
  stroke(context, lost ? "#d55e00" : store.colours(index)[0], lost || selected ? 3.5 : 2, "rgba(0,0,0,0.6)", lost ? [9, 5] : []);
  context.globalAlpha = 1;
  if (!selected) return;
  for (const [fx, fy] of HANDLES) {
    context.beginPath();
    context.rect(rectangle[0] + fx * rectangle[2] - 4, rectangle[1] + fy * rectangle[3] - 4, 8, 8);
    context.fillStyle = "#ffffff";
    context.fill();
    context.strokeStyle = "#000000";
    context.lineWidth = 1.5;
    context.stroke();
  }
}

/** The number of an object at its corner; loud where it has no slot. */
function drawTag(context, store, index, [x1, y1], scale, lost) {
  const [fill, ink] = lost ? ["#d55e00", "#000000"] : store.colours(index);
  const text = lost ? `${index + 1} no slot!` : `${index + 1}`;
  context.font = "bold 12px system-ui, sans-serif";
  const width = context.measureText(text).width + 8;
  const x = clamp(x1 * scale - 1, 0, Math.max(store.size.width * scale - width, 0));
  const y = clamp(y1 * scale - 17, 0, store.size.height * scale - 16);
  context.fillStyle = fill;
  context.fillRect(x, y, width, 16);
  context.fillStyle = ink;
  context.textAlign = "left";
  context.textBaseline = "middle";
  context.fillText(text, x + 4, y + 8.5);
}

function drawMarks(context, store, index, panel, scale) {
  const { scene, arrays, ground } = store;
  const places = ground[`${panel.model}.places`];
  if (!places) return;
  const [cells, levels] = [ground[`${panel.model}.cells`], ground[`${panel.model}.levels`]];
  const [slots, owners, kinds, values] = ["slot", "owner", "kind", "value"].map((name) => arrays[`${index}.${name}`]);
  // A level is hidden as soon as the person says so; the kernel's answer about it only serves the picture without one.
  const hidden = new Set(store.state.panels[index]?.hidden ?? []);
  for (let i = 0; i < slots.length; i += 1) {
    const slot = slots[i];
    if (hidden.has(levels[slot])) continue;
    const kind = scene.kinds[kinds[i]];
    const [fill, ink] = owners[i] >= 0 ? store.colours(owners[i]) : ["#bbbbbb", "#000000"];
    const shape = scene.shapes[levels[slot] % scene.shapes.length];
    const side = markSize(cells[slot] * scale);
    const key = `${kinds[i]} ${shape} ${side} ${owners[i]} ${values[i]}`;
    stamps.put(context, key, places[2 * slot] * scale, places[2 * slot + 1] * scale, 1.2 * Math.max(side, LISTED), (inner) => {
      drawMark(inner, scene, kind, shape, side, fill, ink, owners[i], values[i]);
    });
  }
}

/** Marks that were drawn once, as pictures: there are hundreds in a frame, but few that look different. */
class Stamps {
  constructor() {
    this.made = new Map();
    this.density = 0;
  }

  /** Put a mark's picture at (x, y), on whole pixels of the screen; `paint` draws it around (0, 0), at most `reach` far. */
  put(context, key, x, y, reach, paint) {
    const density = window.devicePixelRatio || 1;
    if (density !== this.density || this.made.size > MOST_STAMPS) {
      this.made.clear();
      this.density = density;
    }
    let stamp = this.made.get(key);
    if (!stamp) {
      const half = Math.ceil(reach * density);
      const canvas = new OffscreenCanvas(2 * half, 2 * half);
      const inner = canvas.getContext("2d");
      inner.setTransform(density, 0, 0, density, half, half);
      inner.textAlign = "center";
      inner.textBaseline = "middle";
      paint(inner);
      stamp = canvas.transferToImageBitmap();
      this.made.set(key, stamp);
    }
    const half = stamp.width / 2;
    const [left, top] = [Math.round(x * density) - half, Math.round(y * density) - half];
    context.drawImage(stamp, left / density, top / density, stamp.width / density, stamp.height / density);
  }
}

const stamps = new Stamps();

/** A mark around (0, 0). */
function drawMark(context, scene, kind, shape, side, fill, ink, owner, value) {
  const inside = (text, size, colour) => {
    context.fillStyle = colour;
    context.font = `bold ${(text.length < 3 ? 0.7 : 0.5) * size}px system-ui, sans-serif`;
    context.fillText(text, 0, 0.5);
  };
  if (kind === "positive") {
    outline(context, shape, side);
    stroke(context, fill, 0.5);
    context.fillStyle = fill;
    context.fill();
    if (side >= NUMBERED) inside(`${owner + 1}`, side, ink);
  } else if (kind === "ignored") {
    cross(context, 0.7 * side);
    stroke(context, "#ffffff", 1.5);
  } else if (kind === "conflict") {
    outline(context, "o", 1.7 * side);
    stroke(context, "#ffffff", 2, "#000000", [4, 3]);
  } else if (kind === "other") {
    outline(context, "o", Math.max(0.35 * side, 3));
    stroke(context, "#dddddd", 0.4, "#333333");
    context.fillStyle = "#dddddd";
    context.fill();
  } else if (kind === "heat") {
    outline(context, shape, side);
    stroke(context, "#ffffff", 1);
    context.fillStyle = value === NO_VALUE ? "#bbbbbb" : heatColour(scene.heat, value / (NO_VALUE - 1));
    context.fill();
  } else if (kind === "from predictions" || kind === "from anchors") {
    const size = Math.max(side, LISTED);
    outline(context, kind === "from anchors" ? "s" : "o", kind === "from anchors" ? 1.15 * size : size);
    stroke(context, fill, 0.6);
    context.fillStyle = fill;
    context.fill();
    inside(`${value}`, size, ink);
  } else if (kind === "dropped") {
    outline(context, shape, side);
    context.fillStyle = "#ffffff";
    context.fill();
    stroke(context, fill, 1.6);
    cross(context, 0.6 * side);
    context.strokeStyle = "#000000";
    context.lineWidth = 1.6;
    context.stroke();
  } else {
    outline(context, shape, side);
    stroke(context, fill, 2);
  }
}

/** The slot whose numbers are shown: a ring around it, and the box that it predicts. */
function drawHovered(context, store, panel, slot, scale) {
  const places = store.ground[`${panel.model}.places`];
  const boxes = store.ground[`${panel.model}.boxes`];
  if (!places) return;
  const [x, y] = [places[2 * slot] * scale, places[2 * slot + 1] * scale];
  const [x1, y1, x2, y2] = [0, 1, 2, 3].map((i) => clamp(boxes[4 * slot + i] * scale, -1e4, 1e4));
  context.beginPath();
  context.rect(x1, y1, x2 - x1, y2 - y1);
  stroke(context, "#ffffff", 1.5, "#000000", [5, 4]);
  context.beginPath();
  context.arc(x, y, 12, 0, 2 * Math.PI);
  stroke(context, "#ffffff", 2.5);
}

// ---- one panel ------------------------------------------------------------------------------------------------------

/** Text that is only written where it changed: writing makes the browser lay out the page again. */
function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** A table of the kernel's words: cells are text, or [text, heat]. */
function fillTable(node, scene, text, columns, rows) {
  const isWords = (value) => typeof value === "string" && /[a-z]{3}/i.test(value);
  const cell = (value) => {
    const [words, heat] = Array.isArray(value) ? value : [value, null];
    const style = heat === null ? null : `background:${heatColour(scene.heat, heat)};color:${heat < 0.5 ? "#000000" : "#ffffff"}`;
    return element("td", { style, "data-words": isWords(words) }, String(words));
  };
  const head = (name, i) => element("th", { scope: "col", "data-words": isWords(rows[0][i]) }, name);
  const table = columns.length && rows.length
    ? element("table", {}, element("tr", {}, ...columns.map(head)), ...rows.map((row) => element("tr", {}, ...row.map(cell))))
    : null;
  node.replaceChildren(...[text ? element("p", {}, text) : null, table].filter(Boolean));
}

class Panel {
  constructor(view, index) {
    this.view = view;
    this.store = view.store;
    this.index = index;
    this.built = null; // for which strategy and model the controls were made
    this.canvas = element("canvas", {});
    this.stage = element("div", {
      class: "minidet-stage", tabindex: "0", role: "application", "aria-roledescription": "picture with objects",
      "aria-describedby": view.help.id,
    }, this.canvas);
    this.frame = element("div", { class: "minidet-frame" }, this.stage);
    this.head = element("div", { class: "minidet-head" });
    this.status = element("div", { class: "minidet-status" });
    this.levels = element("div", { class: "minidet-bar" });
    this.dials = element("div", { class: "minidet-dials" });
    this.explanation = element("div", { class: "minidet-numbers", "data-part": "explanation" });
    this.slot = element("div", { class: "minidet-numbers minidet-slot", "data-part": "slot" });
    this.objects = element("tbody", {});
    this.objectsHead = element("tr", {});
    this.sizes = element("div", { class: "minidet-numbers", "data-part": "sizes" });
    const table = element("table", { class: "minidet-objects" }, element("thead", {}, this.objectsHead), this.objects);
    this.node = element("section", { class: "minidet-panel", "data-panel": index }, this.head,
      element("div", { class: "minidet-words" }, this.frame, this.levels, this.slot),
      element("div", { class: "minidet-words" }, this.status, this.explanation,
        element("details", { open: true }, element("summary", {}, "Dials"), this.dials),
        element("details", { open: true }, element("summary", {}, "Objects and their slots"),
          element("div", { class: "minidet-numbers", "data-part": "objects" }, table), this.sizes)));
    for (const name of ["pointerdown", "pointermove", "pointerup", "pointercancel", "pointerleave", "keydown"]) {
      this.stage.addEventListener(name, (event) => this[name](event));
    }
  }

  get choice() {
    return this.store.state.panels[this.index];
  }

  get answer() {
    return this.store.answer.panels[this.index];
  }

  // Controls. They are made anew only when another strategy, model or number of panels needs other ones.

  build() {
    const { store } = this;
    const { scene, state } = store;
    const key = JSON.stringify([this.choice.rule, this.choice.model, state.panels.length, state.image]);
    if (key === this.built) return;
    const focused = this.node.contains(document.activeElement) ? document.activeElement.dataset.control : null;
    this.built = key;
    const rule = scene.rules[this.choice.rule];
    this.head.replaceChildren();
    if (scene.models.length > 1) {
      this.model = element("input", {
        type: "range", min: 0, max: scene.models.length - 1, step: 1, "data-control": "model", "aria-label": "model",
        oninput: () => { this.choice.model = Number(this.model.value); store.state.hover = null; store.ask(); },
      });
      this.modelName = element("output", {});
      this.head.append(element("label", {}, "Model ", this.model, this.modelName));
    }
    this.rule = element("select", { "data-control": "rule", onchange: () => this.chooseRule(Number(this.rule.value)) },
      ...scene.rules.map(({ name }, i) => element("option", { value: i, selected: i === this.choice.rule }, name)));
    this.head.append(element("label", {}, "Strategy ", this.rule));
    this.steps = rule.steps.map((name, i) => element("button", {
      "data-control": `step ${i}`, "aria-pressed": "false", onclick: () => { this.choice.step = i; store.ask(); },
    }, rule.steps.length > 1 ? `${i + 1} ${name}` : name));
    if (this.steps.length > 1) {
      const turn = (by) => { this.choice.step = clamp(this.choice.step + by, 0, this.steps.length - 1); store.ask(); };
      this.back = element("button", { "data-control": "back", "aria-label": "step back", onclick: () => turn(-1) }, "◀");
      this.forth = element("button", { "data-control": "forth", "aria-label": "step forth", onclick: () => turn(1) }, "▶");
      this.head.append(element("span", { class: "minidet-steps", role: "group", "aria-label": "steps" }, this.back, ...this.steps, this.forth));
    }
    if (state.panels.length > 1) {
      this.head.append(element("button", {
        "data-control": "close",
        onclick: () => { store.state.panels.splice(this.index, 1); store.state.hover = null; store.ask(); },
      }, "Close"));
    }
    this.strides = store.strides[this.answer.model] ?? [];
    this.levelCounts = this.strides.map(() => element("output", {}));
    this.levels.replaceChildren("Show ", ...this.strides.map((stride, level) => element("label", {},
      element("input", {
        type: "checkbox", checked: !this.choice.hidden.includes(level), "data-control": `level ${level}`,
        onchange: (event) => {
          const others = this.choice.hidden.filter((each) => each !== level);
          this.choice.hidden = event.target.checked ? others : [...others, level];
          store.ask();
        },
      }), `${GLYPHS[scene.shapes[level % scene.shapes.length]]} stride ${stride}: `, this.levelCounts[level])));
    this.makeDials(rule);
    this.objectsHead.replaceChildren(...["object", "size, px", ...this.strides.map((stride) => `stride ${stride}`), "slots"]
      .map((name) => element("th", { scope: "col" }, name)));
    this.objects.replaceChildren();
    if (focused) this.node.querySelector(`[data-control="${focused}"]`)?.focus();
  }

  makeDials(rule) {
    const { store } = this;
    this.dials.replaceChildren();
    this.knobs = rule.dials.map((dial, i) => {
      const output = element("output", {});
      const turned = () => {
        this.choice.dials[i] = dial.is_switch ? Number(input.checked) : Number(input.value);
        this.choice.moved = dial.name;
        store.ask();
      };
      const common = { "data-control": dial.name, "aria-label": dial.words };
      const input = dial.is_switch
        ? element("input", { type: "checkbox", onchange: turned, ...common })
        : element("input", { type: "range", min: 0, max: dial.texts.length - 1, step: 1, oninput: turned, ...common });
      this.dials.append(element("span", {}, dial.words), input, output);
      return { input, output, dial };
    });
    this.dials.append(element("span", {}), element("button", {
      "data-control": "reset", onclick: () => { this.choice.dials = [...rule.start]; this.choice.moved = null; store.ask(); },
    }, "Reset dials"), element("span", {}));
  }

  chooseRule(rule) {
    const { start, steps } = this.store.scene.rules[rule];
    Object.assign(this.choice, { rule, dials: [...start], step: steps.length - 1, moved: null });
    this.store.ask();
  }

  // What changes with every answer.

  refresh() {
    const { store } = this;
    if (!this.answer || !this.choice) return;
    this.build();
    if (this.model) {
      this.model.value = this.choice.model;
      write(this.modelName, store.scene.models[this.choice.model]);
    }
    this.rule.value = this.choice.rule;
    this.steps.forEach((button, i) => button.setAttribute("aria-pressed", String(i === this.choice.step)));
    if (this.steps.length > 1) {
      this.back.disabled = this.choice.step === 0;
      this.forth.disabled = this.choice.step === this.steps.length - 1;
    }
    this.knobs.forEach(({ input, output, dial }, i) => {
      const position = this.choice.dials[i];
      if (dial.is_switch) input.checked = Boolean(position);
      else input.value = position;
      write(output, dial.texts[position] ?? "");
      input.setAttribute("aria-valuetext", dial.texts[position] ?? "");
    });
    this.levelCounts.forEach((output, level) => write(output, String(this.answer.levels[level] ?? 0)));
    this.refreshStatus();
    const { text, columns, rows } = this.answer.explanation;
    const told = JSON.stringify(this.answer.explanation);
    if (told !== this.told) {
      this.told = told;
      fillTable(this.explanation, store.scene, text, columns, rows);
    }
    const { hover } = this.answer;
    const slotTold = JSON.stringify(hover);
    if (slotTold !== this.slotTold) {
      this.slotTold = slotTold;
      if (hover) fillTable(this.slot, store.scene, hover.text, hover.columns, hover.rows);
      else fillTable(this.slot, store.scene, "Point at a slot, or press S on the picture, to see the numbers behind it.", [], []);
    }
    this.refreshObjects();
  }

  refreshStatus() {
    const { positives, ignored, conflicts, unowned } = this.answer;
    const key = JSON.stringify([positives, ignored, conflicts, unowned]);
    if (key === this.statusKey) return;
    this.statusKey = key;
    const lost = unowned.map((row) => row + 1);
    const named = lost.slice(0, 12).join(", ") + (lost.length > 12 ? ` and ${lost.length - 12} more` : "");
    this.status.replaceChildren(
      element("span", { "data-count": "positives" }, element("b", {}, String(positives)), " positive"),
      element("span", { "data-count": "ignored" }, element("b", {}, String(ignored)), " ✕ ignored"),
      element("span", { "data-count": "conflicts" }, element("b", {}, String(conflicts)), conflicts === 1 ? " ◌ conflict" : " ◌ conflicts"),
      ...(lost.length ? [element("span", { class: "minidet-alarm", "data-count": "unowned" },
        `${lost.length === 1 ? "Object" : "Objects"} without any slot: ${named}`)] : []));
  }

  refreshObjects() {
    const { store } = this;
    const { arrays, state } = store;
    const counts = arrays[`${this.index}.counts`];
    const levels = this.strides.length;
    const number = Math.min(state.boxes.length, levels ? counts.length / levels : 0);
    while (this.objects.children.length > number) this.objects.lastChild.remove();
    while (this.objects.children.length < number) {
      const row = this.objects.children.length;
      this.objects.append(element("tr", { onclick: () => { store.select(row); this.stage.focus({ preventScroll: true }); } },
        element("td", {}, element("span", { class: "minidet-swatch" }), element("span", {})),
        ...Array.from({ length: levels + 2 }, () => element("td", {}))));
    }
    for (let i = 0; i < number; i += 1) {
      const row = this.objects.children[i];
      const [x1, y1, x2, y2] = state.boxes[i];
      const own = counts.subarray(i * levels, (i + 1) * levels);
      const total = own.reduce((a, b) => a + b, 0);
      const [swatch, name] = row.firstChild.children;
      const [fill, ink] = store.colours(i);
      if (swatch.textContent !== String(i + 1)) {
        swatch.textContent = String(i + 1);
        swatch.style.background = fill;
        swatch.style.color = ink;
      }
      write(name, ` ${store.scene.classes[state.labels[i]]}`);
      write(row.children[1], `${Math.round(x2 - x1)} × ${Math.round(y2 - y1)}`);
      own.forEach((count, level) => write(row.children[2 + level], String(count)));
      write(row.children[2 + levels], total ? String(total) : "none!");
      const lost = total === 0;
      if (row.hasAttribute("data-lost") !== lost) row.toggleAttribute("data-lost", lost);
      const selected = String(i === state.selected);
      if (row.getAttribute("aria-selected") !== selected) row.setAttribute("aria-selected", selected);
    }
    const sizes = JSON.stringify(this.answer.sizes);
    if (sizes !== this.sizesTold) {
      this.sizesTold = sizes;
      fillTable(this.sizes, store.scene, "", ["size, px²", "objects", "slots", "slots an object", "without any"],
        this.answer.sizes.map(({ name, words, objects, positives, without }) => [
          `${name} (${words})`, objects, positives, objects ? (positives / objects).toFixed(1) : "–", without,
        ]));
    }
  }

  draw() {
    const { store } = this;
    const { width, height } = store.size;
    const room = Math.max(this.frame.clientWidth, 50);
    this.scale = (Math.min(room, Math.max(760, width)) / width) * this.view.zoom;
    const density = window.devicePixelRatio || 1;
    const [w, h] = [Math.round(width * this.scale), Math.round(height * this.scale)];
    if (this.canvas.width !== Math.round(w * density) || this.canvas.height !== Math.round(h * density)) {
      this.canvas.width = Math.round(w * density);
      this.canvas.height = Math.round(h * density);
      this.canvas.style.width = this.stage.style.width = `${w}px`;
      this.canvas.style.height = this.stage.style.height = `${h}px`;
    }
    if (store.bitmap && (this.backdropOf !== store.bitmap || this.backdrop.width !== this.canvas.width || this.backdrop.height !== this.canvas.height)) {
      this.backdropOf = store.bitmap;
      this.backdrop = scaled(store.bitmap, this.canvas);
    }
    const context = this.canvas.getContext("2d");
    context.setTransform(density, 0, 0, density, 0, 0);
    drawPanel(context, store, this.index, this.scale, this.backdrop);
    const words = this.answer ? this.answer.words : "";
    const selected = store.state.selected >= 0 ? ` Object ${store.name(store.state.selected)} is selected.` : "";
    const label = `Picture with ${store.state.boxes.length} objects. ${words}${selected}`;
    if (this.stage.getAttribute("aria-label") !== label) this.stage.setAttribute("aria-label", label);
  }

  // The hand.

  place(event) {
    const { left, top } = this.stage.getBoundingClientRect();
    return [(event.clientX - left) / this.scale, (event.clientY - top) / this.scale];
  }

  /** What is under a point: a handle of the selected box, a box (of several the smallest), or nothing. */
  hit([x, y]) {
    const { boxes, selected } = this.store.state;
    const reach = HANDLE / this.scale;
    if (selected >= 0) {
      const [x1, y1, x2, y2] = boxes[selected];
      const handle = HANDLES.findIndex(([fx, fy]) => Math.abs(x1 + fx * (x2 - x1) - x) <= reach && Math.abs(y1 + fy * (y2 - y1) - y) <= reach);
      if (handle >= 0) return { index: selected, handle };
    }
    let [index, smallest] = [-1, Infinity];
    boxes.forEach(([x1, y1, x2, y2], i) => {
      const area = (x2 - x1) * (y2 - y1);
      if (x >= x1 - reach && x <= x2 + reach && y >= y1 - reach && y <= y2 + reach && area < smallest) [index, smallest] = [i, area];
    });
    return index >= 0 ? { index, handle: -1 } : null;
  }

  pointerdown(event) {
    if (event.button !== 0 || this.store.waiting) return;
    const { store } = this;
    const start = this.place(event);
    this.stage.setPointerCapture(event.pointerId);
    this.stage.focus({ preventScroll: true });
    event.preventDefault();
    const found = this.hit(start);
    if (found) store.select(found.index);
    this.drag = {
      start, handle: found?.handle ?? -1, index: found?.index ?? -1, moved: false,
      box: found ? [...store.state.boxes[found.index]] : null,
    };
  }

  pointermove(event) {
    const point = this.place(event);
    const { drag, store } = this;
    if (!drag) {
      const found = this.hit(point);
      this.stage.style.cursor = found ? (found.handle >= 0 ? `${CURSORS[found.handle]}-resize` : "move") : "crosshair";
      if (event.pointerType === "mouse") store.hover(this.index, this.slotAt(point));
      return;
    }
    const [dx, dy] = [point[0] - drag.start[0], point[1] - drag.start[1]];
    if (!drag.moved) {
      if (Math.hypot(dx, dy) * this.scale < 3) return; // a click, so far
      drag.moved = true;
      store.held = true;
      if (drag.index >= 0) store.remember();
      else {
        const before = store.state.boxes.length;
        store.add([...drag.start, drag.start[0] + 1, drag.start[1] + 1], this.view.label());
        if (store.state.boxes.length === before) { this.drop(); return; } // no more objects fit
        Object.assign(drag, { index: before, handle: 4, box: [...drag.start, ...drag.start] });
      }
    }
    if (drag.handle < 0) store.moveBox(drag.index, drag.box, dx, dy);
    else store.setBox(drag.index, resized(drag.box, HANDLES[drag.handle], dx, dy));
  }

  pointerup(event) {
    const { drag } = this;
    if (drag && !drag.moved) {
      if (drag.index < 0) this.store.select(-1);
      this.store.hover(this.index, this.slotAt(this.place(event))); // a tap asks for a slot's numbers too
    }
    this.drop();
  }

  pointercancel() {
    this.drop();
  }

  pointerleave() {
    if (!this.drag) this.store.hover(this.index, -1);
  }

  drop() {
    const held = this.store.held;
    this.drag = null;
    this.store.held = false;
    if (held) this.store.ask(); // so that the kernel's last word about the boxes is taken
  }

  /** The slot under a point: one with a mark first, else the nearest cell of the shown levels. */
  slotAt([x, y]) {
    const { store } = this;
    const model = this.answer?.model;
    const places = store.ground[`${model}.places`];
    if (!places || store.answer.image !== store.state.image) return -1;
    const [cells, levels] = [store.ground[`${model}.cells`], store.ground[`${model}.levels`]];
    const hidden = new Set(this.choice.hidden);
    const distance = (slot) => Math.hypot(places[2 * slot] - x, places[2 * slot + 1] - y);
    let [best, least] = [-1, Infinity];
    for (const slot of store.arrays[`${this.index}.slot`]) {
      const d = distance(slot);
      if (d < least && !hidden.has(levels[slot]) && d * this.scale <= markSize(cells[slot] * this.scale) / 2 + 3) [best, least] = [slot, d];
    }
    if (best >= 0) return best;
    for (let slot = 0; slot < levels.length; slot += 1) {
      const d = distance(slot);
      if (d < least && d <= cells[slot] * 0.75 && !hidden.has(levels[slot])) [best, least] = [slot, d];
    }
    return best;
  }

  // The keyboard.

  keydown(event) {
    const { store } = this;
    const { state } = store;
    const { key } = event;
    const step = event.altKey ? 1 : 4;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    const next = (by) => state.boxes.length && store.select((state.selected + by + state.boxes.length) % state.boxes.length);
    const selected = state.selected;
    if ((event.ctrlKey || event.metaKey) && key.toLowerCase() === "z") store.undoLast();
    else if (event.ctrlKey || event.metaKey) return;
    else if (moves[key] && selected >= 0) {
      if (!event.repeat) store.remember(); // one undo for one long press
      if (event.shiftKey) store.setBox(selected, resized(state.boxes[selected], [1, 1], ...moves[key]));
      else store.moveBox(selected, state.boxes[selected], ...moves[key]);
    } else if ((key === "Delete" || key === "Backspace") && selected >= 0) store.delete(selected);
    else if (key.toLowerCase() === "n") next(1);
    else if (key.toLowerCase() === "p") next(state.selected < 0 ? 0 : -1);
    else if (key.toLowerCase() === "a") this.view.addObject();
    else if (key.toLowerCase() === "s") this.nextSlot(event.shiftKey ? -1 : 1);
    else if (key === "Escape") { store.select(-1); store.hover(this.index, -1); }
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** Go through the marked slots of the selected object, or of all. */
  nextSlot(by) {
    const { store } = this;
    const slots = store.arrays[`${this.index}.slot`];
    const owners = store.arrays[`${this.index}.owner`];
    const { selected, hover } = store.state;
    const own = [...new Set([...slots].filter((_, i) => selected < 0 || owners[i] === selected))];
    if (!own.length) return;
    const at = hover && hover[0] === this.index ? own.indexOf(hover[1]) : -1;
    store.hover(this.index, own[at < 0 ? (by > 0 ? 0 : own.length - 1) : (at + by + own.length) % own.length]);
  }
}

/** A box with one of its handles moved; corners that cross change places. */
function resized([x1, y1, x2, y2], [fx, fy], dx, dy) {
  if (fx === 0) x1 += dx;
  if (fx === 1) x2 += dx;
  if (fy === 0) y1 += dy;
  if (fy === 1) y2 += dy;
  return [Math.min(x1, x2), Math.min(y1, y2), Math.max(x1, x2), Math.max(y1, y2)];
}

// ---- the whole view -------------------------------------------------------------------------------------------------

let views = 0;

class View {
  constructor(store, el) {
    this.store = store;
    this.zoom = 1;
    this.panels = [];
    this.scheduled = false;
    this.notice = new Notice();
    views += 1;
    this.help = element("p", { class: "minidet-help", id: `minidet-help-${views}` },
      "Drag a box or its corners; drag on empty ground to draw a new one. On the picture: N and P choose an object, arrow keys "
      + "move it and with Shift resize it (Alt: by single pixels), Delete removes it, A adds one, Ctrl+Z takes back, S goes through slots.");
    this.bar = this.makeBar();
    this.grid = element("div", { class: "minidet-panels" });
    this.root = element("div", { class: "minidet" }, this.bar, this.notice.node, this.grid, this.help);
    el.append(this.root);
    this.observer = new ResizeObserver(() => this.refresh());
    this.observer.observe(this.root);
    store.views.add(this);
    this.refresh();
  }

  makeBar() {
    const { store } = this;
    const { scene } = store;
    this.image = element("select", { "data-control": "image", onchange: () => store.showImage(Number(this.image.value)) },
      ...scene.images.map((_, i) => element("option", { value: i }, `${i + 1} of ${scene.images.length}`)));
    this.labels = element("select", { "data-control": "class", onchange: () => this.chooseClass() },
      ...scene.classes.map((name, i) => element("option", { value: i }, name)));
    const button = (name, words, action) => element("button", { "data-control": name, onclick: action }, words);
    this.remove = button("delete", "Delete object", () => store.delete(store.state.selected));
    this.removeAll = button("delete all", "Delete all", () => store.deleteAll());
    this.back = button("undo", "Undo", () => store.undoLast());
    this.compare = button("compare", "Compare", () => {
      const last = store.state.panels.at(-1);
      store.state.panels.push({ ...last, dials: [...last.dials], hidden: [...last.hidden] });
      store.ask();
    });
    const zoom = element("input", {
      type: "range", min: 1, max: 4, step: 0.25, value: 1, "aria-label": "zoom", style: "width:80px",
      oninput: () => { this.zoom = Number(zoom.value); this.refresh(); },
    });
    return element("div", { class: "minidet-bar", role: "toolbar", "aria-label": "objects" },
      scene.images.length > 1 ? element("label", {}, "Picture ", this.image) : null,
      element("label", {}, "Class ", this.labels), button("add", "Add object", () => this.addObject()),
      this.remove, this.removeAll, this.back, this.compare, element("label", {}, "Zoom ", zoom));
  }

  label() {
    return Number(this.labels.value);
  }

  chooseClass() {
    const { state } = this.store;
    if (state.selected < 0) return; // it is the class of the next object then
    this.store.remember();
    state.labels[state.selected] = this.label();
    this.store.ask();
  }

  /** A new object in the middle, a quarter of the picture wide. */
  addObject() {
    const { width, height } = this.store.size;
    const half = Math.min(width, height) / 8;
    this.store.add([width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half], this.label());
  }

  /** Draw in the browser's next frame, however often it is called before; the words around the picture too, or not. */
  refresh(words = true) {
    this.wordsToo = words || this.wordsToo;
    if (this.scheduled) return;
    this.scheduled = true;
    requestAnimationFrame(() => {
      this.scheduled = false;
      if (this.wordsToo) this.show();
      this.wordsToo = false;
      for (const panel of this.panels) panel.draw();
      this.setBusy(this.store.channel.busy);
      this.tell("drawn", this.store.drawn);
    });
  }

  setBusy(busy) {
    if (this.busy === busy) return;
    this.busy = busy;
    this.root.setAttribute("aria-busy", String(busy));
  }

  show() {
    const { store } = this;
    const { state } = store;
    const count = Math.min(state.panels.length, store.answer.panels.length);
    while (this.panels.length > count) this.panels.pop().node.remove();
    while (this.panels.length < count) {
      this.panels.push(new Panel(this, this.panels.length));
      this.grid.append(this.panels.at(-1).node);
    }
    this.grid.style.setProperty("--panels", count);
    this.grid.dataset.count = count;
    this.image.value = state.image;
    if (state.selected >= 0 && document.activeElement !== this.labels) this.labels.value = state.labels[state.selected];
    this.remove.disabled = state.selected < 0;
    this.removeAll.disabled = !state.boxes.length;
    this.back.disabled = !store.undo.length;
    this.compare.disabled = state.panels.length >= store.scene.most_panels;
    for (const panel of this.panels) panel.refresh();
    if (store.error) this.notice.show(store.error.text, store.error.details);
    else if (store.silence) this.notice.show(store.silence);
    else this.notice.hide();
  }

  /** For whoever measures: request number `seq` goes out ("asked"), or this frame shows the answer to it ("drawn"). */
  tell(what, seq) {
    this.root.dispatchEvent(new CustomEvent(`minidet:${what}`, { detail: { seq }, bubbles: true }));
  }

  close() {
    this.observer.disconnect();
    this.store.views.delete(this);
  }
}

export default () => {
  let store;
  return {
    initialize({ model }) {
      store = new Store(model);
    },
    render({ el }) {
      const view = new View(store, el);
      return () => view.close();
    },
  };
};
