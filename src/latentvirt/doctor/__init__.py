"""What goes wrong for people with their hosts: looked for, told with a way out, mended where that is safe."""

from __future__ import annotations

from latentvirt.doctor.examining import examine
from latentvirt.doctor.finding import Finding, Fix, Severity
from latentvirt.doctor.mending import mend
from latentvirt.doctor.wanted import MasterAddress, NamedImage, Wanted

__all__ = ["Finding", "Fix", "MasterAddress", "NamedImage", "Severity", "Wanted", "examine", "mend"]
