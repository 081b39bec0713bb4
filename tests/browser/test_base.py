"""The way from the page to the kernel and back, on an explorer that does next to nothing."""

from __future__ import annotations

ECHO = '''
import time
import numpy as np
from minidet.draw import draw_detections
from minidet.errors import MinidetError
from minidet.explore import base

class Echo(base.Explorer):
    """Answers with the double of a number, and has a slow and two faulty states."""
    _css = base._text("base.css")
    _esm = base._text("base.js") + """
    function render({ model, el }) {
      const channel = new Channel(model), notice = new Notice(), log = element("p", { class: "log" });
      let value = 0;
      channel.listeners.add({
        answered: (seq, mine) => {
          notice.hide();
          const { double } = unpack(model.get("answer").layout, model.get("numbers"));
          log.append(` ${double[0]}`);
        },
        failed: ({ text, details }) => notice.show(text, details),
        silent: (text) => notice.show(text),
      });
      const send = (next) => { value = next; channel.ask(() => [{ value }, [new Float32Array([next]).buffer]]); };
      el.append(element("div", { class: "minidet" },
        ...[1, 2, 3, -1, -2, 9].map((n) => element("button", { onclick: () => send(n) }, `send ${n}`)),
        element("button", { onclick: () => [1, 2, 3, 4].forEach(send) }, "burst"), notice.node, log));
    }
    export default { render };
    """

    def compute(self, state, buffers):
        if state["value"] == -1:
            raise MinidetError("minus one makes no sense")
        if state["value"] == -2:
            raise KeyError("a fault of the program")
        if state["value"] == 9:
            time.sleep(5)
        sent = np.frombuffer(buffers[0], np.float32)
        layout, self.numbers = base.pack({"odd": np.zeros(3, np.uint8), "double": 2 * sent})
        self.answer = {"layout": layout, "asked": self.answer.get("asked", 0) + 1}

    def figure(self):
        return draw_detections(np.zeros((8, 8, 3), np.uint8))

echo = Echo()
echo
'''


def test_states_go_to_the_kernel_and_back_and_whatever_goes_wrong_is_shown(notebook):
    book = notebook("echo.ipynb", [ECHO])
    book.run_all()
    page = book.page
    log, notice = page.locator(".log"), page.locator(".minidet-notice > span")

    def press(name):
        page.get_by_role("button", name=name, exact=True).click()

    press("send 2")
    page.wait_for_function("() => document.querySelector('.log').innerText.trim() === '4'")
    # Four states at once: the first goes out, the second and third are overtaken by the fourth.
    press("burst")
    page.wait_for_function("() => document.querySelector('.log').innerText.trim() === '4 2 8'")

    press("send -1")
    notice.wait_for()
    assert notice.inner_text() == "minus one makes no sense"
    press("send -2")
    notice.get_by_text("KeyError: 'a fault of the program'").wait_for()
    assert "raise KeyError" in page.locator(".minidet-notice pre").text_content()  # the traceback, folded
    press("send 3")
    notice.wait_for(state="hidden")
    assert log.inner_text().split() == ["4", "2", "8", "6"]

    press("send 9")
    notice.get_by_text("does not answer yet").wait_for(timeout=8000)
    notice.wait_for(state="hidden")
    assert log.inner_text().split() == ["4", "2", "8", "6", "18"]

    book.restart_kernel()
    notice.get_by_text("is gone").wait_for(timeout=30000)
    assert log.inner_text().split() == ["4", "2", "8", "6", "18"]
