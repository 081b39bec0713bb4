// The view of an explorer that is a figure with controls (minidet/explore/figure_explorer.py). It shows the picture that
// the kernel drew, and tells the kernel which values the controls have and at which place of the picture a hand points.

const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
// Without this attribute on the very element JupyterLab takes arrow keys for itself, and a slider would never see them.
const OWN_KEYS = { "data-lm-suppress-shortcuts": "true" };
const channels = new WeakMap(); // one for each model, however many views it has

function render({ model, el }) {
  if (!channels.has(model)) channels.set(model, new Channel(model));
  const channel = channels.get(model);
  const notice = new Notice();
  const panel = element("form", { class: "minidet-controls", onsubmit: (event) => event.preventDefault() });
  const image = element("img", { class: "minidet-image", draggable: "false" });
  const frame = element("div", { class: "minidet-frame" }, image);
  const busy = element("p", { class: "minidet-busy", hidden: true }, "computing …");
  const spoken = element("p", { class: "minidet-spoken", "aria-live": "polite" });
  const root = element("section", { class: "minidet minidet-explorer", "aria-label": model.get("scene").words },
    panel, notice.node, frame, busy, spoken);
  el.append(root);

  let values = { ...model.get("answer").values };
  let look = null; // what the shown picture was asked for
  let shape = ""; // of the controls that stand in the panel
  let inputs = {}; // name -> function that shows a value
  let address = null; // of the image's bytes
  let timer = null;

  function currentLook() {
    const [red, green, blue] = (getComputedStyle(root).backgroundColor.match(/[\d.]+/g) ?? [255, 255, 255]).map(Number);
    return { dark: 0.3 * red + 0.59 * green + 0.11 * blue < 110, scale: window.devicePixelRatio || 1 };
  }

  function ask() {
    look = currentLook();
    clearTimeout(timer);
    timer = setTimeout(() => { busy.hidden = false; }, 400);
    channel.ask(() => [{ values: { ...values }, ...look }, []]);
  }

  function set(name, value) {
    values = { ...values, [name]: value };
    ask();
  }

  // ---- the controls

  function labelled(control, input, showValue) {
    const output = showValue ? element("output", {}) : null;
    inputs[control.name] = (value) => {
      if (control.kind === "switch") input.checked = value;
      else if (control.kind === "slider") input.value = value;
      else input.value = control.choices.findIndex(([choice]) => choice === value);
      if (!output) return;
      const digits = Number.isInteger(control.step) ? 0 : 2;
      output.value = control.kind === "slider" ? Number(value).toFixed(digits)
        : (control.choices.find(([choice]) => choice === value) ?? [null, ""])[1];
    };
    return control.kind === "switch"
      ? element("label", { class: "minidet-switch" }, input, control.words)
      : element("label", {}, element("span", {}, control.words), input, output);
  }

  function make(control) {
    const name = control.name;
    if (control.kind === "switch") {
      const input = element("input", {
        type: "checkbox", name, ...OWN_KEYS, onchange: () => set(name, input.checked),
      });
      return labelled(control, input, false);
    }
    if (control.kind === "choice") {
      const options = control.choices.map(([, words], index) => element("option", { value: index }, words));
      const input = element("select", {
        name, ...OWN_KEYS, onchange: () => set(name, control.choices[input.value][0]),
      }, ...options);
      return labelled(control, input, false);
    }
    const steps = control.kind === "steps";
    const [low, high, step] = steps ? [0, control.choices.length - 1, 1] : [control.low, control.high, control.step];
    const input = element("input", { type: "range", name, ...OWN_KEYS, min: low, max: high, step, oninput: () => {
      const value = steps ? control.choices[input.value][0] : Number(input.value);
      inputs[name](value);
      set(name, value);
    } });
    return labelled(control, input, true);
  }

  function showControls(controls) {
    const next = JSON.stringify(controls);
    if (next !== shape) {
      shape = next;
      const focused = root.contains(document.activeElement) ? document.activeElement.name : null;
      inputs = {};
      const groups = new Map();
      for (const control of controls) {
        if (!groups.has(control.group)) groups.set(control.group, []);
        groups.get(control.group).push(make(control));
      }
      panel.replaceChildren(...[...groups].map(([title, members]) => title
        ? element("fieldset", {}, element("legend", {}, title), ...members)
        : element("div", { class: "minidet-row" }, ...members)));
      if (focused) panel.elements[focused]?.focus();
    }
    for (const [name, show] of Object.entries(inputs)) show(values[name]);
  }

  // ---- the picture

  function pointAt(event, area, place) {
    const box = area.getBoundingClientRect();
    const share = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    move(share[0] * place[4], share[1] * place[5], place);
  }

  function move(x, y, place) {
    set("point", [Math.min(Math.max(x, 0), place[4] - 0.01), Math.min(Math.max(y, 0), place[5] - 0.01)]);
  }

  function makeArea(place, index) {
    const area = element("div", {
      class: "minidet-area",
      ...OWN_KEYS,
      role: index === 0 ? "application" : null,
      tabindex: index === 0 ? "0" : null,
      "aria-label": index === 0 ? "The picture. Arrow keys move the point, with shift faster." : null,
      onpointerdown: (event) => {
        area.setPointerCapture(event.pointerId);
        frame.querySelector("[tabindex]").focus({ preventScroll: true });
        pointAt(event, area, place);
        event.preventDefault();
      },
      onpointermove: (event) => { if (event.buttons) pointAt(event, area, place); },
      onkeydown: (event) => {
        if (!(event.key in KEYS)) return;
        const far = event.shiftKey ? 5 : 1;
        const [dx, dy] = KEYS[event.key].map((sign, axis) => sign * far * model.get("answer").step[axis]);
        move(values.point[0] + dx, values.point[1] + dy, place);
        event.preventDefault();
      },
    });
    [area.style.left, area.style.top, area.style.width, area.style.height] = place.slice(0, 4).map((share) => `${100 * share}%`);
    return area;
  }

  let places = "";
  function showAreas(answer) {
    const next = JSON.stringify(answer.places);
    if (!("point" in values) || next === places) return; // the same areas stay, and with them focus and a hand that drags
    places = next;
    const focused = frame.contains(document.activeElement);
    frame.querySelectorAll(".minidet-area").forEach((area) => area.remove());
    frame.append(...answer.places.map(makeArea));
    if (focused) frame.querySelector("[tabindex]")?.focus({ preventScroll: true });
  }

  function show() {
    const answer = model.get("answer");
    const old = address;
    address = URL.createObjectURL(new Blob([model.get("picture")], { type: "image/png" }));
    image.onload = () => { if (old) URL.revokeObjectURL(old); };
    image.src = address;
    image.alt = answer.alt;
    image.style.width = `${answer.size[0]}px`;
    image.style.aspectRatio = `${answer.size[0]} / ${answer.size[1]}`;
    spoken.textContent = answer.alt;
    showControls(answer.controls);
    showAreas(answer);
  }

  const listener = {
    answered: (seq, mine) => {
      notice.hide();
      if (mine && (channel.underWay || channel.newest)) {
        const kept = values; // the hand is farther on than this answer
        values = { ...model.get("answer").values, ...kept };
        return show();
      }
      clearTimeout(timer);
      busy.hidden = true;
      values = { ...model.get("answer").values };
      return show();
    },
    failed: ({ text, details }) => {
      clearTimeout(timer);
      busy.hidden = true;
      values = { ...model.get("answer").values }; // back to what is shown
      showControls(model.get("answer").controls);
      notice.show(text, details);
    },
    silent: (text) => notice.show(text),
  };
  channel.listeners.add(listener);
  show();
  // Ask again when the theme or the screen's sharpness is another one than the shown picture was drawn for.
  const adapt = () => {
    const now = currentLook();
    if (!look || look.dark !== now.dark || look.scale !== now.scale) ask();
  };
  const watcher = new MutationObserver(adapt);
  watcher.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name", "class"] });
  const sharpness = window.matchMedia(`(resolution: ${window.devicePixelRatio}dppx)`);
  sharpness.addEventListener("change", adapt);
  const first = requestAnimationFrame(() => {
    const now = currentLook();
    if (now.dark || now.scale !== 1) ask();
    else look = now;
  });
  return () => {
    cancelAnimationFrame(first);
    clearTimeout(timer);
    watcher.disconnect();
    sharpness.removeEventListener("change", adapt);
    channel.listeners.delete(listener);
    if (address) URL.revokeObjectURL(address);
  };
}

export default { render };
