"""Standard output and error that outlast whoever reads them: no command ends because its lines cannot be written."""

import contextlib
import errno
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def lasting(program: str) -> Iterator["Lasting"]:
    """Inside, a line that cannot be written is lost, and nothing else is; yields standard output.

    A reader that has gone (`| head`) is no error. Of another reason, such as a full disk, one line on standard error
    says which stream is lost. Characters that the terminal's encoding lacks are written as escapes. A stream that was
    closed from the start is the null device, so that no file of a run gets its number. Python's warnings take a line.

    Args:
      program: how the line starts.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    with contextlib.ExitStack() as stack:
        null = stack.enter_context(open(os.devnull, "w"))
        err = Lasting(sys.stderr or null)
        out = Lasting(sys.stdout or null, lambda line: err.write(f"{program}: {line}\n"))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        stack.callback(setattr, warnings, "formatwarning", warnings.formatwarning)
        warnings.formatwarning = lambda message, *_, **__: f"warning: {' '.join(str(message).split())}\n"
        stack.callback(out.flush)
        stack.callback(err.flush)
        yield out


class Lasting(io.TextIOBase):
    """A text stream whose writes never fail.

    Attributes:
      lost: whether lines are, for another reason than that nobody reads them.
    """

    def __init__(self, stream: Any, say: Callable[[str], Any] = lambda line: None):
        self._stream, self._say, self.lost = stream, say, False

    def write(self, text: str) -> int:
        """Writes it, or gives up the stream."""
        encoding = self._stream.encoding or "utf-8"
        try:
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Flushes it, or gives up the stream."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Points the stream at the null device, what it still holds included."""
        with contextlib.suppress(OSError):  # a stream in memory has no number
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
        if error.errno != errno.EPIPE:
            self.lost = True
            reason = os.strerror(error.errno or 0).lower()
            self._say(f"standard output cannot be written ({reason}); its lines are lost")

    def fileno(self) -> int:
        """The stream's own."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream.isatty()

    @property
    def encoding(self) -> str:
        """The stream's own."""
        return self._stream.encoding or "utf-8"

    @property
    def errors(self) -> str:
        """What is done about characters that the encoding lacks."""
        return "backslashreplace"

    @property
    def buffer(self) -> Any:
        """The stream's own."""
        return self._stream.buffer
