"""The page's chat: a serving process started on demand for one job, its answers passed on piece by piece."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from medley.dashboard.relay import relay
from medley.protocol.errors import Unavailable

START_S = 60.0
LINE_NBYTES_MAX = 1 << 20


class Answers:
    """At most one serving process; another model replaces it. `close` ends it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._model = ""
        self._url = ""  # http://host:port/v1
        self._process: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()

    async def ask(self, model: str, messages: Sequence[Mapping[str, str]]) -> AsyncIterator[str]:
        """Pieces of the answer. Raises Unavailable with a sentence."""
        url = await self._serving(model)
        async for piece in relay(url, model, messages):
            yield piece

    async def _serving(self, model: str) -> str:
        async with self._starting:
            alive = self._process is not None and self._process.returncode is None
            if not alive or model != self._model:
                await self.close()
                self._url = await self._start(model)
                self._model = model
            return self._url

    async def _start(self, model: str) -> str:
        path = self._directory / "exports" / model
        if "/" in model or not path.is_dir():
            raise Unavailable(f"there is no trained model '{model}' yet")
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "medley",
            "serve",
            str(path),
            "--port",
            "0",
            "--json",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=LINE_NBYTES_MAX,
        )
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), START_S)
            return str(json.loads(line)["url"])
        except (TimeoutError, ValueError, KeyError) as error:
            await self.close()
            raise Unavailable(f"no serving process could be started for '{model}'") from error

    async def close(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        self._process = None
