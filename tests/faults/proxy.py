"""A TCP proxy that can cut, swallow, delay and refuse."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType


class Proxy:
    """Listens on 127.0.0.1 and passes everything on to *target* (``host:port``), as long as nobody asks otherwise."""

    def __init__(self, port: int, target: str) -> None:
        self.address = f"127.0.0.1:{port}"
        host, target_port = target.split(":")
        self._target = (host, int(target_port))
        self._port = port
        self._flows = threading.Event()
        self._flows.set()
        self._delay = 0.0
        self._refusing = self._ended = False
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended = True
        self.pass_on()
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Close every connection; new ones are welcome."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def refuse(self) -> None:
        """Close every connection, and every new one at once."""
        self._refusing = True
        self.cut()

    def swallow(self) -> None:
        """Pass nothing on, and close nothing."""
        self._flows.clear()

    def delay(self, seconds: float) -> None:
        """Hold up every piece by so much."""
        self._delay = seconds

    def pass_on(self) -> None:
        """Be a good proxy again."""
        self._refusing, self._delay = False, 0.0
        self._flows.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._refusing:
                near.close()
                continue
            try:
                far = socket.create_connection(self._target, 5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            self._open |= {near, far}
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                if self._delay:
                    time.sleep(self._delay)
                self._flows.wait()
                sink.sendall(piece)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
            self._open.discard(end)
