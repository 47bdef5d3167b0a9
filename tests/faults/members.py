"""Members of the group: the service under test in processes of its own, to be killed, frozen and asked to stop."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import TracebackType

    from ledger import Ledger

SERVED = Path(__file__).with_name("served.py")
SESSION_SECONDS = 6.0


class Member:
    """One process.  As a context manager it is killed at the end, if it still runs."""

    def __init__(
        self, ledger: Ledger, bootstrap: str | None = None, *, name: str | None = None, **settings: Any
    ) -> None:
        kafka = {"session_timeout": SESSION_SECONDS, "heartbeat_interval": 0.5, **settings.pop("kafka", {})}
        if name is not None:
            # Static membership: whoever comes back under this name has his partitions at once.
            kafka["group_instance_id"] = name
        arguments = {
            "topic": ledger.topic,
            "group": ledger.group,
            "results": ledger.results,
            "bootstrap": bootstrap or ledger.bootstrap,
            "kafka": kafka,
            **settings,
        }
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-u", str(SERVED), json.dumps(arguments)],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and self.code is None:
            self._process.send_signal(signal.SIGUSR1)
            time.sleep(0.3)
        self._process.kill()
        self._process.wait()
        if error is not None:
            error.add_note(f"a member said last:\n{self.said()[-3000:]}")
        self._output.close()

    @property
    def code(self) -> int | None:
        """Its exit code, once it has ended."""
        return self._process.poll()

    def said(self) -> str:
        """Its output so far."""
        return Path(f"/proc/self/fd/{self._output.fileno()}").read_text()

    def wait_ready(self, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while "ready" not in self.said():
            if self.code is not None or time.monotonic() > deadline:
                raise TimeoutError(f"a member did not come up (code {self.code}):\n{self.said()[-3000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def ask_to_stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float = 60) -> int:
        """Its exit code.  One that does not end is made to show its stacks."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"a member has not ended within {seconds:g} s") from None

    def stop(self, seconds: float = 60) -> dict[str, Any]:
        """Let it drain; its figures."""
        self.ask_to_stop()
        code = self.wait(seconds)
        if code != 0:
            raise RuntimeError(f"a member ended with code {code}:\n{self.said()[-3000:]}")
        # Not simply the last line: what a client leaves lying about is logged when the loop is closed.
        told = [line for line in self.said().splitlines() if line.startswith('{"uploaded"')]
        figures: dict[str, Any] = json.loads(told[-1])
        return figures
