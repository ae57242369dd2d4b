"""Split and merge neurons, certify the local minima that arise, and leave them.

Imported on demand only: ``from hf_fam.landscape import widen``. See docs/landscape.md.
"""

from __future__ import annotations

from .certificate import SplitCertificate, split_certificate
from .critical_point import CriticalPoint, find_critical_point
from .design import DesignedMinimum, design_minimum
from .escape import EscapePath, escape_path
from .infimum import InfimumPath, RankCondition, path_to_infimum
from .judge import Verdict
from .objective import HalfSquaredError
from .path_point import PathPoint
from .splitting import merge_duplicates, split_neuron, widen

__all__ = [
    "CriticalPoint",
    "DesignedMinimum",
    "EscapePath",
    "HalfSquaredError",
    "InfimumPath",
    "PathPoint",
    "RankCondition",
    "SplitCertificate",
    "Verdict",
    "design_minimum",
    "escape_path",
    "find_critical_point",
    "merge_duplicates",
    "path_to_infimum",
    "split_certificate",
    "split_neuron",
    "widen",
]
