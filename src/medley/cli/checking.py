"""What a person sees while many seeds are checked: one line that moves, a paragraph for each violation, a summary."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from medley.runtimes.simulated.check import Findings, Seed

SHOWN = 5  # violations told in full


class Told:
    """Hears of each seed as it is finished."""

    def __init__(self, first: int, seeds: int, *, quiet: bool) -> None:
        self.first, self.seeds, self.quiet = first, seeds, quiet
        self.live = not quiet and sys.stderr.isatty()
        self.findings: Findings | None = None
        self.broken_off = False
        self._said_s = 0.0

    def hear(self, seed: Seed, findings: Findings) -> None:
        self.findings = findings
        if seed.invariant and len(findings.violations) <= SHOWN:
            self._wipe()
            self._violation(seed)
        every_s = 0.5 if self.live else 30.0
        if not self.quiet and findings.seconds - self._said_s >= every_s:
            self._said_s = findings.seconds
            self._progress(findings)

    def interrupted(self) -> None:
        self.broken_off = True
        self._wipe()
        done = self.findings.seeds if self.findings else 0
        click.echo(f"interrupted: {done} of {self.seeds} seeds were run; this is what they found", err=True)
        self.end(False)

    def end(self, table: bool) -> None:
        self._wipe()
        findings = self.findings
        if findings is None:
            return
        from medley.runtimes.simulated.check import required
        from medley.runtimes.simulated.coverage import ENOUGH

        if table:
            for line in findings.coverage.table(required(findings.kind)):
                click.echo(line, err=self.quiet)
        if self.quiet:
            return
        more = len(findings.violations) - SHOWN
        if more > 0:
            others = ", ".join(str(seed.seed) for seed in findings.violations[SHOWN : SHOWN + 20])
            click.echo(f"{more} further violations, of seeds {others}{' ...' if more > 20 else ''}")
        uncovered = findings.uncovered()
        for fault, operation in uncovered:
            click.echo(f"not met: the fault '{fault}' never met '{operation}'")
        if lost := [] if self.broken_off else findings.lost:
            click.echo(f"not run, as their process ended: {len(lost)} seeds, the first of them {lost[0]}")
        rate = findings.seeds / findings.seconds if findings.seconds else 0.0
        click.echo(
            f"{findings.seeds} seeds from {findings.first}: {len(findings.violations)} violations, "
            + (
                f"{len(uncovered)} pairs not met"
                if findings.seeds >= ENOUGH
                else f"coverage is judged from {ENOUGH} on"
            )
        )
        click.echo(
            f"{findings.seconds:.1f} s, {rate:.1f} seeds/s, {findings.virtual_s / 3600:.1f} virtual hours, "
            f"{findings.events} events; digest {findings.digest}"
        )

    def _violation(self, seed: Seed) -> None:
        from medley.runtimes.simulated.check import command_of
        from medley.runtimes.simulated.checkers import INVARIANTS

        click.echo(f"seed {seed.seed} breaks {seed.invariant} ({INVARIANTS[seed.invariant]}):", err=self.quiet)
        click.echo(f"  {seed.sentence}", err=self.quiet)
        click.echo(f"  {command_of(seed)}", err=self.quiet)

    def _progress(self, findings: Findings) -> None:
        rate = findings.seeds / findings.seconds
        left_s = (self.seeds - findings.seeds) / rate
        line = (
            f"{findings.seeds} of {self.seeds} seeds, {rate:.1f}/s, {len(findings.violations)} violations, "
            f"about {left_s:.0f} s left"
        )
        click.echo(f"\r{line:78}" if self.live else line, err=True, nl=not self.live)

    def _wipe(self) -> None:
        if self.live:
            click.echo(f"\r{'':78}\r", err=True, nl=False)
