"""The words a confined program may say to the worker, and what they mean.

The program's text output is never passed on, since it may hold a prompt. It may send one of
these words instead, each one message of a sequenced-packet socket. Anything else is answered
by ending the program. Standard library only: it is used on both sides.
"""

from __future__ import annotations

from typing import Final

DIRECTORY: Final = b"directory"  # carries a descriptor of the private socket directory
UNCONFINED: Final = b"unconfined"
CONFINE_FAILED: Final = b"confine-failed"
FILE_EXCHANGED: Final = b"file-exchanged"
CONFINED: Final = {b"confined-%d" % version: version for version in range(64)}  # Landlock ABI
READY: Final = b"ready"

#: Reasons for not getting ready; the program ends after it has given one.
REASONS: Final = {
    CONFINE_FAILED: "the kernel refused to confine it (see the Linux kernel's log)",
    FILE_EXCHANGED: "a file inside is not the one that was opened and measured: was it exchanged "
    "while the engine started?",
    b"arguments": "its arguments do not decode",
    b"library-missing": "the engine library cannot be loaded (package xllamacpp)",
    b"setting-missing": "the engine library lacks a setting that must be overridden",
    b"setting-refused": "the engine library did not take over a setting that must be overridden",
    b"model-refused": "the engine library cannot load the model, or a file beside it",
    b"socket-refused": "the engine did not open its socket where it was told to",
    b"program-missing": "its program cannot be run inside the sandbox: is its interpreter, or a "
    "directory that it needs, outside what was named (--engine-root)?",
    b"program-ended": "its program ended before it answered: run it by hand to see why, since what "
    "it writes is never shown",
}

MAX_WORD: Final = 32
