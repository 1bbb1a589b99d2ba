"""What an edit follows. One file a method: each is a dataclass of its options with one method, `gradient`.

A new method is a file here, an entry in OBJECTIVES, and a YAML file in `configs/objective/` (see docs/extending.md).
"""

from cds3d.objectives.cds import CDS
from cds3d.objectives.csd import CSD
from cds3d.objectives.dds import DDS
from cds3d.objectives.ids import IDS
from cds3d.objectives.nfsd import NFSD
from cds3d.objectives.pds import PDS
from cds3d.objectives.sds import SDS
from cds3d.objectives.ssd import SSD

OBJECTIVES = {
    "sds": SDS,
    "dds": DDS,
    "cds": CDS,
    "pds": PDS,
    "ids": IDS,
    "ssd": SSD,
    "csd": CSD,
    "nfsd": NFSD,
}
