// What the views of all explorers share. Python puts this text in front of an explorer's own (minidet/explore/base.py),
// so everything here is simply there.

const FOCUSABLE = new Set(["button", "input", "select", "summary", "textarea"]);

/**
 * Make an element: element("label", {class: "wide", onclick: f}, "text", child, ...). Attributes that are null are left out.
 *
 * What can have the keyboard's focus says that its keys are its own. JupyterLab would take single ones for its commands
 * (arrows choose a cell, A adds one, D D deletes it), and it asks the focused element itself, not what is around it.
 */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  if (FOCUSABLE.has(tag) || "tabindex" in attributes) made.setAttribute("data-lm-suppress-shortcuts", "true");
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const ARRAYS = {
  uint8: Uint8Array, uint16: Uint16Array, int16: Int16Array,
  uint32: Uint32Array, int32: Int32Array, float32: Float32Array,
};

/** The arrays that `pack` of base.py put into one piece: {name: typed array}. They share memory with the DataView. */
function unpack(layout, bytes) {
  const arrays = {};
  for (const [name, [kind, offset, length]] of Object.entries(layout)) {
    const start = bytes.byteOffset + offset;
    const Kind = ARRAYS[kind];
    // A front end may hand over bytes at an odd address, where typed arrays cannot begin.
    arrays[name] = start % Kind.BYTES_PER_ELEMENT === 0
      ? new Kind(bytes.buffer, start, length)
      : new Kind(bytes.buffer.slice(start, start + length * Kind.BYTES_PER_ELEMENT));
  }
  return arrays;
}

/**
 * The way to the kernel and back. One for each model, however many views it has.
 *
 * At most one request is under way. While it is, only the newest state is kept, and it goes out when the answer comes:
 * so a slow kernel skips states, and the picture is never more than one computation old.
 *
 * Listeners are objects with any of
 *   answered(seq, mine)  traits hold the answer to request `seq`; `mine` is false if somebody else asked (another window,
 *                        or Python)
 *   failed(error)        {text, details}; traits are as they were
 *   silent(text)         the kernel is gone, or does not answer
 */
class Channel {
  constructor(model) {
    this.model = model;
    this.client = Math.random().toString(36).slice(2);
    this.seq = 0; // of the last request that went out
    this.underWay = false;
    this.newest = null; // the state that waits
    this.listeners = new Set();
    this.timer = null;
    this.gone = false;
    model.on("change:status", () => this.receive());
    // Told by the widget manager when a kernel dies or is restarted: the Python half of the widget no longer exists.
    model.on("comm_live_update", () => this.lose());
  }

  /** Ask for the answer to a state. `make(seq)` gives [plain values, ArrayBuffers] when the time to send has come. */
  ask(make) {
    this.newest = make;
    if (!this.underWay) this.send();
  }

  /** Whether what is shown is not yet the answer to what was set last. */
  get busy() {
    return this.underWay || this.newest !== null;
  }

  send() {
    this.seq += 1;
    const [state, buffers] = this.newest(this.seq);
    this.newest = null;
    this.underWay = true;
    clearTimeout(this.timer);
    if (this.gone) return this.lose();
    this.timer = setTimeout(() => this.tell("silent", "The kernel does not answer yet. If it runs other cells, the "
      + "picture follows when they are done; if it is gone, run this cell again."), 4000);
    this.model.send({ client: this.client, seq: this.seq, state }, undefined, buffers);
    return undefined;
  }

  receive() {
    const { client, seq, error } = this.model.get("status");
    const mine = client === this.client;
    if (mine && seq === this.seq) {
      this.underWay = false;
      clearTimeout(this.timer);
    }
    if (error) this.tell("failed", error);
    else this.tell("answered", seq, mine);
    if (!this.underWay && this.newest) this.send();
  }

  lose() {
    this.gone = true;
    clearTimeout(this.timer);
    this.tell("silent", "The kernel that computed this is gone. The picture stays as it was; run the cell again to go on.");
  }

  tell(what, ...facts) {
    for (const listener of this.listeners) listener[what]?.(...facts);
  }
}

/** The line in which a view says what went wrong. Screen readers read it out as soon as it appears. */
class Notice {
  constructor() {
    this.node = element("div", { class: "minidet-notice", role: "alert", hidden: true });
  }

  show(text, details = "") {
    this.node.replaceChildren(element("span", {}, text));
    if (details) {
      this.node.append(element("details", {}, element("summary", {}, "Where"), element("pre", {}, details)));
    }
    this.node.hidden = false;
  }

  hide() {
    if (!this.node.hidden) {
      this.node.hidden = true;
      this.node.replaceChildren();
    }
  }
}

/** The picture of the model's trait as something that a canvas can draw. */
async function pictureOf(model) {
  const bytes = model.get("picture");
  return bytes.byteLength ? createImageBitmap(new Blob([bytes], { type: "image/png" })) : null;
}

/** A style variable of the front end's theme, such as "--jp-ui-font-color1", or what to take where it has none. */
function themed(node, name, otherwise) {
  return getComputedStyle(node).getPropertyValue(name).trim() || otherwise;
}

