"""The configuration that `make lab` gives to its server."""

from __future__ import annotations

from pathlib import Path

import pytest
from traitlets.config.loader import PyFileConfigLoader

import minidet.explore

channels = pytest.importorskip("jupyter_server.services.kernels.connection.channels")
FOLDER = Path(minidet.explore.__file__).parent / "jupyter"


def test_every_websocket_of_a_kernel_sends_its_messages_at_once(monkeypatch):
    calls = []

    class Handler:
        def set_nodelay(self, value):
            calls.append(("nodelay", value))

    config = PyFileConfigLoader("jupyter_server_config.py", path=str(FOLDER)).load_config()
    kind = config.ServerApp.kernel_websocket_connection_class
    assert issubclass(kind, channels.ZMQChannelsWebsocketConnection)
    monkeypatch.setattr(channels.ZMQChannelsWebsocketConnection, "connect", lambda self: calls.append("connected"))
    connection = kind.__new__(kind)
    monkeypatch.setattr(kind, "websocket_handler", Handler())
    connection.connect()
    assert calls == [("nodelay", True), "connected"]
