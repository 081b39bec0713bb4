"""One JupyterLab and one Chromium for all browser tests."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("playwright", reason="the browser tests need playwright: pip install -e '.[test]'")

from tests.browser.jupyter import chromium, open_notebook, running_browser, running_lab


@pytest.fixture(scope="session")
def lab_and_browser(tmp_path_factory):
    if chromium() is None:
        message = (
            "there is no Chromium on this machine, so no browser test ran; on Debian or Ubuntu: apt install chromium"
        )
        if os.environ.get("MINIDET_NEEDS_CHROMIUM"):  # continuous integration sets it
            pytest.fail(message)
        pytest.skip(message)
    with running_lab(tmp_path_factory.mktemp("notebooks")) as lab, running_browser() as browser:
        yield lab, browser


def _notebooks(lab_and_browser):
    """Opens a notebook with given cells; afterwards no error may stand in the page's console."""
    opened = []

    def make(name, cells, **options):
        opened.append(open_notebook(*lab_and_browser, name, cells, **options))
        return opened[-1]

    yield make
    for each in opened:
        each.close()
    assert [error for each in opened for error in each.errors] == []


notebook = pytest.fixture(_notebooks, name="notebook")
lasting_notebook = pytest.fixture(_notebooks, name="lasting_notebook", scope="module")  # for all tests of a module
