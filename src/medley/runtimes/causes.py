"""What an engine's report goes back to: the message that made its role give the command which the report answers.

A lease's base leads to a computation, and minutes later to an update: one cause runs through all of it, over every
machine's log. Bounded; what was forgotten or never asked for has no cause of its own.
"""

from __future__ import annotations

from collections import OrderedDict

from medley.protocol import engine as e

CAUSES_MAX = 4096


class Causes:
    """Of the commands of one engine."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, object], str] = OrderedDict()

    def given(self, command: e.Command, cause: str) -> None:
        """This command follows from `cause` (empty: from nothing that was said)."""
        key = _asked(command)
        if key is None:
            return
        self._known[key] = cause
        while len(self._known) > CAUSES_MAX:
            self._known.popitem(last=False)

    def of(self, report: e.Report) -> str:
        """The cause of the command that this answers, or nothing."""
        key = _answered(report)
        return "" if key is None else self._known.get(key, "")


def _asked(command: e.Command) -> tuple[str, object] | None:
    match command:
        case e.OpenWorker() | e.OpenShard() | e.OpenStage():
            return "open", ""
        case e.LoadWorker() | e.LoadShard():
            return "load", ""
        case e.Pull(_, version) | e.Measure(version) | e.WriteVersion(_, version):
            return _KINDS[type(command)], str(version)
        case e.Apply(_, number):
            return "apply", str(number)
        case e.Compute(update) | e.Push(_, update):
            return _KINDS[type(command)], update
        case e.SetPeers(number):
            return "peers", number
        case e.PrepareJob(job) | e.ExportJob(job) | e.SealCheckpoint(job):
            return _KINDS[type(command)], job
        case _:
            return None


_KINDS: dict[type, str] = {
    e.Pull: "pull",
    e.Measure: "measure",
    e.WriteVersion: "write",
    e.Compute: "compute",
    e.Push: "push",
    e.PrepareJob: "prepare",
    e.ExportJob: "export",
    e.SealCheckpoint: "seal",
}


def _answered(report: e.Report) -> tuple[str, object] | None:
    match report:
        case e.Opened():
            return "open", ""
        case e.Loaded():
            return "load", ""
        case e.Pulled(_, version):
            return "pull", str(version)
        case e.Measured(version):
            return "measure", str(version)
        case e.WroteVersion(_, version):
            return "write", str(version)
        case e.AppliedVersion(_, version):
            return "apply", str(version)
        case e.Computed(update):
            return "compute", update
        case e.Pushed(_, update):
            return "push", update
        case e.PeersKnown(number):
            return "peers", number
        case e.JobPrepared(job):
            return "prepare", job
        case e.Exported(job):
            return "export", job
        case e.Sealed(job):
            return "seal", job
        case e.Failed(what, subject):
            return what, "" if what == "load" else subject
        case _:
            return None
