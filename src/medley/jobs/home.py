"""Where things of this person live, and how to reach the coordinator that runs here.

Everything is below MEDLEY_HOME, else ~/.medley: `coordinator` is the state of a coordinator (and of the pool that
`medley train` starts when none runs), `node` that of a machine that joined one. A running coordinator leaves
`address.json` and `operator.pem` in its directory; whoever may read those may operate it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from medley.protocol.errors import UserError

if TYPE_CHECKING:
    from medley.transports.control.operator import OperatorClient

ADDRESS: Final = "address.json"
LOCK: Final = "lock"  # held by the watchdog for as long as it keeps a coordinator there
CREDENTIALS: Final = "operator.pem"
MAX_ADDRESS_NBYTES: Final = 16 << 10


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where a coordinator listens ("host:port", and a URL for `http`), and the process it is."""

    control: str
    door: str = ""
    http: str = ""
    pid: int = 0


def home() -> Path:
    """MEDLEY_HOME, else ~/.medley. It need not exist."""
    return Path(os.environ.get("MEDLEY_HOME") or Path.home() / ".medley").expanduser()


def coordinator_dir(given: str | None = None) -> Path:
    """The coordinator's directory: the one given, else `coordinator` at home."""
    return Path(given).expanduser() if given else home() / "coordinator"


def node_dir() -> Path:
    """The state of this machine as a member of somebody's pool."""
    return home() / "node"


def whereabouts(directory: Path) -> Whereabouts | None:
    """What the coordinator of a directory says of itself; None when none does. Raises UserError for a damaged file."""
    path = directory / ADDRESS
    try:
        with path.open("rb") as file:
            content = file.read(MAX_ADDRESS_NBYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    try:
        return msgspec.json.decode(content, type=Whereabouts)
    except msgspec.DecodeError as error:
        raise UserError(f"{path} is damaged ({error}): start the coordinator again with 'medley up'") from error


def is_running(directory: Path) -> bool:
    """Whether a coordinator of this machine runs in a directory; a file left by a killed one does not count."""
    from medley.runtimes.lock import is_held

    return whereabouts(directory) is not None and is_held(directory / LOCK)


def operator(coordinator: str | None = None) -> OperatorClient:
    """A client of the coordinator here, or of the one whose directory is given. Raises UserError when none runs."""
    directory = coordinator_dir(coordinator)
    found = whereabouts(directory)
    if found is None:
        raise UserError(
            f"no coordinator is running here ({directory / ADDRESS} is missing); start one with 'medley up', "
            "or pass --coordinator DIR"
        )
    from medley.transports.control.operator import OperatorClient
    from medley.transports.identity import Credentials

    return OperatorClient(found.control, Credentials.load(directory / CREDENTIALS))
