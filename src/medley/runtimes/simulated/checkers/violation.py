"""What a broken invariant is, and the sentence of each."""

from __future__ import annotations

from medley.protocol.errors import MedleyError

INVARIANTS: dict[str, str] = {
    "J1": "a job is in one legal state; what is done stays done",
    "J2": "one name is one job, however often it is submitted",
    "J3": "a lease is in one place; nothing of an earlier generation has any effect",
    "J4": "an update, and a lease, is accepted once; what fails everywhere is given up with a reason",
    "J5": "when the faults end, every job ends",
    "J6": "a job begins with all of its shards, on machines that may hold them, or with none",
    "J7": "the state is the fold of the log",
    "J8": "one coordinator writes: an older term cannot add a word",
    "T1": "parameters are the sum of what the log says was accepted; nobody hears of a commit before the log",
    "T2": "a refused update leaves no trace in the parameters, and its fate is decided once",
    "T3": "no update is staler than its bound, and a stale one counts as its age says",
    "T4": "all shards apply the same members, and what is pulled or saved is one pinned version, whole",
    "T5": "versions and generations follow each other",
    "D1": "each sample is used once an epoch; none is lost",
    "D2": "the ledger returns with the parameters of its checkpoint",
    "D3": "a lease is in the log before anybody hears of it, and no sample is leased twice",
    "C1": "a checkpoint is whole: all parts of one version and one generation",
    "C2": "what was called saved can be loaded",
    "C3": "the last good checkpoints are never thrown away",
    "C4": "a deterministic run is the same run, whatever died meanwhile",
    "S1": "a machine that was revoked, or speaks of what is not its own, changes nothing",
    "S2": "a worker's update names leases of its own, and no others",
    "S3": "what is kept for others is bounded",
    "M1": "a seed is one history",
    "M2": "no clock of a machine changes what the roles decide",
    "R1": "a role never raises, whatever it is told",
    "I1": "a client's tokens are those of the undisturbed run, each once, in order",
    "I2": "no stage computes a row whose earlier positions it does not hold, or holds wrong",
    "I3": "no pass of an older generation changes anything",
    "I4": "KV held is within the limit, and none when all requests have ended",
    "I5": "every request ends: answered, refused with a reason, or cancelled",
    "E1": "an engine is never asked for what it cannot do",
}


class Violation(MedleyError):
    """An invariant does not hold. `sentence` says what was seen."""

    def __init__(self, invariant: str, sentence: str) -> None:
        assert invariant in INVARIANTS, f"there is no invariant {invariant}"
        super().__init__(f"{invariant}: {sentence}")
        self.invariant = invariant
        self.sentence = sentence
