"""A process of a test, which ends with its block: a failed assertion leaves nothing running and no pipe open.

What is left behind is found by the next test that happens to collect garbage, and fails that one instead.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager


@contextmanager
def running(
    command: Sequence[str], *, speaks: bool = True, complains: bool = False, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Start `command` with pipes at its input and, unless told otherwise, its output; killed when the block ends."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe if speaks else None, stderr=pipe if complains else None, text=True, env=env
    ) as process:
        try:
            yield process
        finally:
            process.kill()
