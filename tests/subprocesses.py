"""Other processes: tests start them here, and none is left when a test ends, however it ends.

Nothing waits for a fixed time. A process that takes longer than `PATIENCE` is killed, so that
whoever waits for it sees the end of its output and tells what it had said until then.
"""

import codecs
import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import vcjax

ROOT = Path(vcjax.__file__).parents[1]
"""Of the checkout, where its scripts and configs lie."""

TO_STDOUT = subprocess.STDOUT
"""For `stderr=`: the process's own stdout, so that `read_line` has what it logs as well."""

PATIENCE = 300.0
"""Seconds that a process may run. The slowest takes 15 of them on two quiet cores."""


def environment(**changes: str) -> dict[str, str]:
    """That of a new process: vcjax is importable, and there is one device as users have it."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": paths, "XLA_FLAGS": "", **changes}


class Process:
    """A process of a session of its own, so that all that it starts ends with it.

    Args:
        words: the command.
        cwd: its working folder; else this one.
        env: its whole environment; else `environment()`.
        patience: seconds until it is killed; None for one that runs as long as the tests do.
        options: what else `subprocess.Popen` takes.
    """

    def __init__(
        self,
        *words: object,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        patience: float | None = PATIENCE,
        **options: Any,
    ):
        # A file and no pipe: nobody reads it meanwhile, and a full pipe would block the process.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed with the process
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
        self._popen: subprocess.Popen[str] = subprocess.Popen(
            list(map(str, words)),
            cwd=cwd,
            env=environment() if env is None else env,
            start_new_session=True,
            text=True,
            **{**pipes, **options},
        )
        self.pid = self._popen.pid
        self._late = False
        self._watchdog = threading.Timer(patience or 0, self._give_up)
        self._watchdog.daemon = True
        if patience is not None:
            self._watchdog.start()

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        """Ends it and all that it started, and waits until it has gone."""
        self.kill()
        self._watchdog.cancel()
        if self._watchdog.ident is not None:
            self._watchdog.join()
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # what it did not read any more
                    pipe.close()
        self._popen.wait()
        self._errors.close()

    def _give_up(self) -> None:
        self._late = True
        self.kill()

    def kill(self) -> None:
        """Kills it and all that it started; nothing if there is nothing left."""
        # PermissionError is what macOS says of a group whose processes have ended.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process itself, if it runs."""
        self._popen.send_signal(number)

    def errors(self) -> str:
        """What it has written to stderr until now, and whether it was killed for being late."""
        self._errors.seek(0)
        late = "killed: it took too long\n" if self._late else ""
        return late + self._errors.read()

    def write_line(self, line: str) -> None:
        """Writes a line to its stdin."""
        print(line, file=_open(self._popen.stdin), flush=True)

    def read_line(self) -> str:
        """The next line of its stdout, without its end; an AssertionError if it has ended."""
        line = _open(self._popen.stdout).readline()
        assert line.endswith("\n"), f"it ended after {line!r}: {self.errors()}"
        return line[:-1]

    def close_input(self) -> None:
        """Tells it that nothing more comes on its stdin."""
        _open(self._popen.stdin).close()

    def wait(self) -> int:
        """Its exit code, once it has ended; of one whose output nobody reads."""
        return self._popen.wait()

    def finish(self, code: int = 0) -> tuple[str, str]:
        """Waits for its end, which has to be with this exit code.

        Returns:
            What it wrote to stdout and was not read yet, and all that it wrote to stderr.
        """
        out, _ = self._popen.communicate()
        errors = self.errors()
        assert self._popen.returncode == code, f"exit code {self._popen.returncode}: {errors}"
        return out or "", errors


def _open(stream: IO[str] | None) -> IO[str]:
    assert stream is not None, "this process was started without that pipe"
    return stream


class Terminal(Process):
    """A command line of vcjax on a pseudo-terminal.

    Args:
        words: of the command line, after `vcjax`.
    """

    # As from an interactive shell: what a script starts with `&` ignores SIGINT.
    RUN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from vcjax.cli import main
sys.exit(main(sys.argv[1:]))
"""

    def __init__(self, *words: object):
        self._fd, other = pty.openpty()
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.text, self._seen = "", 0
        try:
            command = (sys.executable, "-c", self.RUN, *words)
            plain = environment(NO_COLOR="1", COLUMNS="200", TERM="xterm")
            super().__init__(*command, env=plain, stdin=other, stdout=other, stderr=other)
        except BaseException:
            os.close(self._fd)
            raise
        finally:
            os.close(other)

    def __exit__(self, *caught: object) -> None:
        os.close(self._fd)
        super().__exit__(*caught)

    def _read(self) -> bool:
        """Reads what comes next; whether there was anything before the other end was closed."""
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # Linux's way to tell of the end
            data = b""
        self.text += self._decoder.decode(data)
        return bool(data)

    def expect(self, text: str) -> str:
        """Reads until a text appears after what was expected before; what came up to its end."""
        start = self._seen
        while (found := self.text.find(text, start)) < 0:
            assert self._read(), f"no {text!r} in:\n{self.errors()}{self.text}"
        self._seen = found + len(text)
        return self.text[start : self._seen]

    def answer(self, text: str) -> None:
        """Types a line."""
        os.write(self._fd, f"{text}\n".encode())

    def interrupt(self, code: int) -> str:
        """Presses Ctrl-C until it ends, with this exit code; all that was shown.

        Once may be too little: Python does not hear of a signal that comes between its
        looking for one and its waiting for a line.
        """
        self.send_signal(signal.SIGINT)
        while not select.select([self._fd], [], [], 10)[0]:
            self.send_signal(signal.SIGINT)
        return self.read_to_end(code)

    def read_to_end(self, code: int = 0) -> str:
        """Reads until it ends, which has to be with this exit code; all that was shown."""
        while self._read():
            pass
        ended = self.wait()
        assert ended == code, f"exit code {ended}:\n{self.errors()}{self.text}"
        return self.text


class Processes(contextlib.ExitStack):
    """Starts processes, and ends those that are left when it is closed itself."""

    def start(self, *words: object, **options: Any) -> Process:
        """Starts a command: see `Process`."""
        return self.enter_context(Process(*words, **options))

    def python(self, code: str, *arguments: object, **options: Any) -> Process:
        """Starts some Python, with vcjax and these sources importable."""
        return self.start(sys.executable, "-c", textwrap.dedent(code), *arguments, **options)

    def terminal(self, *words: object) -> Terminal:
        """Starts a command line of vcjax on a pseudo-terminal."""
        return self.enter_context(Terminal(*words))
