"""What a Jupyter server should do for the explorers: pass on each of the kernel's messages at once.

Jupyter's websockets leave Nagle's algorithm on: a second small message is held back until the browser's system has
acknowledged the first, which it puts off for about 40 ms. A kernel sends three for each answer ("busy", the answer,
"idle"), so every move of the mouse waits. `make lab` names this folder in JUPYTER_CONFIG_PATH; a server of your own
may do the same.
"""

from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection


class PromptConnection(ZMQChannelsWebsocketConnection):
    """A kernel's websocket with TCP_NODELAY, otherwise Jupyter's own."""

    def connect(self):
        self.websocket_handler.set_nodelay(True)
        return super().connect()


c.ServerApp.kernel_websocket_connection_class = PromptConnection  # noqa: F821  (Jupyter provides `c`)
