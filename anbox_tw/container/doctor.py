"""What ``anbox doctor`` says: for each backend whether it can run here, what it does without, and the cures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred, ensureDeferred

from anbox_tw.container.backends import BACKENDS
from anbox_tw.container.diagnosis import Probe
from anbox_tw.container.lxc_host import look_at_host
from anbox_tw.container.lxc_probes import probe_host
from anbox_tw.container.probes import HostView, run_checks
from anbox_tw.errors import ExitCode

__all__ = ["DoctorReport", "examine"]


@attrs.frozen
class DoctorReport:
    """What was found.

    Attributes:
        backends: probes by backend.
    """

    backends: Mapping[str, Sequence[Probe]]

    def ready(self, backend: str) -> bool:
        """Whether the backend can run here."""
        return all(probe.ok or not probe.required for probe in self.backends[backend])

    @property
    def exit_code(self) -> ExitCode:
        """``OK`` if any of the examined backends can run, else ``HOST_LACKS``."""
        return ExitCode.OK if any(map(self.ready, self.backends)) else ExitCode.HOST_LACKS

    def as_dict(self) -> dict[str, Any]:
        """The report for ``--json``."""
        return {
            "ready": [name for name in self.backends if self.ready(name)],
            "backends": {
                name: {"ready": self.ready(name), "probes": [probe.as_dict() for probe in probes]}
                for name, probes in self.backends.items()
            },
        }

    def lines(self) -> list[str]:
        """The report for a terminal; what two backends share is shown once."""
        width = max((len(p.name) for probes in self.backends.values() for p in probes), default=0)
        shown: set[Probe] = set()
        text = []
        for name, probes in self.backends.items():
            text.append(f"{name} backend: {'ready' if self.ready(name) else 'cannot run here'}")
            for probe in probes:
                if probe in shown:
                    continue
                shown.add(probe)
                text.append(f"  {probe.verdict:<8}  {probe.name:<{width}}  {probe.detail}")
                if probe.cure:
                    text.append(f"  {'':<8}  {'':<{width}}  -> {probe.cure}")
        return text


def examine(host: HostView, backends: Sequence[str] = BACKENDS) -> Deferred[DoctorReport]:
    """Run all checks of the backends.

    Args:
        host: where to look.
        backends: which to examine.
    """
    return ensureDeferred(_examine(host, backends))


async def _examine(host: HostView, backends: Sequence[str]) -> DoctorReport:
    found = {}
    for backend in backends:
        probes = await run_checks(host, backend)
        if backend == "lxc":
            own = await probe_host(host.commands, look_at_host(), dev=host.dev)
            names = {probe.name for probe in own}
            probes = [*own, *(probe for probe in probes if probe.name not in names)]
        found[backend] = probes
    return DoctorReport(found)
