"""`spica doctor`: names what is wrong between Label Studio, the model server and a project, and the line that helps.

Nothing is changed by looking: what is asked of Label Studio is what its own pages ask, and the two requests that try
whether it may call the model server are incomplete on purpose, so that nothing can be stored.
"""

from __future__ import annotations

from spica.doctor.checks import examine
from spica.doctor.output import Finding, print_findings

__all__ = ["Finding", "examine", "print_findings"]
