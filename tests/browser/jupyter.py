"""A real JupyterLab on this machine and a real Chromium that looks at it: what the tests of explorers, and their
benchmark, run in.

Nothing leaves the machine: the server listens on 127.0.0.1 and asks for a token. Settings, workspaces and runtime files
lie in a folder of their own, so neither side sees what its user has set.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
START_SECONDS = 60  # for the server; one on a busy machine takes 10
CELL_SECONDS = 90  # for all cells of a notebook: the kernel imports torch

# Messages of the front end itself that say nothing about what is tested: (part of the text).
NOT_OURS = (
    "favicon",
    "jupyterlab/extensions",  # the list of extensions, which is asked for on the internet
    "Failed to load resource: the server responded with a status of 404",  # of settings that were never saved
)


def chromium() -> str | None:
    """The browser on this machine, or None; MINIDET_CHROMIUM names another one."""
    return os.environ.get("MINIDET_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)


@dataclass(frozen=True)
class Lab:
    """A running server."""

    url: str
    token: str
    folder: Path  # that it serves

    def api(self, path: str, method: str = "GET") -> Any:
        """A call of the server's own interface, such as `api/kernels`."""
        request = urllib.request.Request(
            f"{self.url}/{path}", method=method, headers={"Authorization": f"token {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            text = response.read()
        return json.loads(text) if text else None


@contextmanager
def running_lab(folder: Path) -> Iterator[Lab]:
    """A JupyterLab that serves `folder`, for as long as the context lasts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    private = folder.parent / (folder.name + "-jupyter")
    places = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, **{name: str(private / part) for name, part in places.items()}, "PYTHONPATH": path}
    environment["JUPYTER_CONFIG_PATH"] = str(ROOT / "minidet" / "explore" / "jupyter")  # as `make lab` does
    quiet = private / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')  # both would ask the internet
    log = private / "server.log"
    # fmt: off
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}",
        "--LabApp.expose_app_in_browser=True", *(["--allow-root"] if _is_root() else []),
    ]
    # fmt: on
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=folder)
    try:
        lab = Lab(f"http://127.0.0.1:{port}", token, folder)
        _wait_for(lab, server, log)
        yield lab
        for kernel in lab.api("api/kernels"):
            lab.api(f"api/kernels/{kernel['id']}", "DELETE")
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_for(lab: Lab, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            lab.api("api/status")
            return
        except OSError as error:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"JupyterLab does not start ({error}):\n{log.read_text()[-3000:]}") from error
            time.sleep(0.1)


@contextmanager
def running_browser() -> Iterator[Browser]:
    """A headless Chromium; there must be one."""
    arguments = ["--no-sandbox"] if _is_root() else []  # as in a container
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=arguments)
        try:
            yield browser
        finally:
            browser.close()


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


@dataclass
class Notebook:
    """A notebook that is open in a page of its own."""

    page: Page
    lab: Lab
    name: str
    errors: list[str] = field(default_factory=list)  # what the page's console called an error

    def run_all(self) -> None:
        """Run all cells and wait until the last one is done; an exception in a cell is an error here."""
        self.command("notebook:run-all-cells")
        idle = (
            "() => window.jupyterapp.shell.currentWidget.content.widgets.every(cell => cell.model.type !== 'code' || "
        )
        idle += "cell.model.executionCount !== null && cell.model.executionState !== 'running')"
        self.page.wait_for_function(idle, timeout=1000 * CELL_SECONDS)
        problems = self.page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']")
        if problems.count():
            raise AssertionError(problems.first.inner_text())

    def command(self, name: str, arguments: dict[str, Any] | None = None) -> None:
        """A command of JupyterLab, as its menus call it; one that never ends is an error."""
        self.page.evaluate(
            """([name, given, most]) => Promise.race([
              window.jupyterapp.commands.execute(name, given).then(() => null),
              new Promise((_, fail) => setTimeout(() => fail(new Error(`${name} has not ended after ${most} s. `
                + (document.querySelector(".jp-Dialog")?.innerText ?? ""))), 1000 * most)),
            ])""",
            [name, arguments or {}, CELL_SECONDS],
        )

    def theme(self, name: str) -> None:
        """Choose "JupyterLab Light" or "JupyterLab Dark"."""
        self.command("apputils:change-theme", {"theme": name})
        self.page.wait_for_function(f"() => document.body.dataset.jpThemeName === '{name}'")
        self.page.wait_for_timeout(300)  # style sheets of the theme

    def kernel(self) -> str:
        """The id of its kernel."""
        (session,) = [each for each in self.lab.api("api/sessions") if each["path"] == self.name]
        return session["kernel"]["id"]

    def restart_kernel(self) -> None:
        """What the button of JupyterLab does once its question is answered."""
        self.page.evaluate(
            "() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart().then(() => null)"
        )

    def save(self) -> nbformat.NotebookNode:
        """Save it, and read what was saved."""
        self.command("docmanager:save")
        return nbformat.read(self.lab.folder / self.name, as_version=4)

    def close(self) -> None:
        kernel = self.kernel()
        self.page.context.close()
        self.lab.api(f"api/kernels/{kernel}", "DELETE")


def open_notebook(
    lab: Lab, browser: Browser, name: str, cells: Sequence[str], zoom: float = 1.0, width: int = 1400
) -> Notebook:
    """Write a notebook of code cells, and open it in JupyterLab.

    Args:
        name: of the file, such as "drag.ipynb".
        cells: their code.
        zoom: 1.25 shows everything larger, as a browser's zoom of 125 % does.
        width: of the window, in pixels of the screen.
    """
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, lab.folder / name)
    viewport = {"width": round(width / zoom), "height": round(1000 / zoom)}
    page = browser.new_context(viewport=viewport, device_scale_factor=zoom, has_touch=True).new_page()
    notebook = Notebook(page, lab, name)

    def keep(message: ConsoleMessage) -> None:
        text = f"{message.text} {message.location.get('url', '')}"
        if message.type == "error" and not any(part in text for part in NOT_OURS):
            notebook.errors.append(text)

    page.on("console", keep)
    page.on("pageerror", lambda error: notebook.errors.append(f"{error}\n{error.stack}"))
    page.goto(f"{lab.url}/lab/tree/{name}?token={lab.token}&reset")
    ready = "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
    page.wait_for_function(ready, timeout=1000 * START_SECONDS)
    return notebook
