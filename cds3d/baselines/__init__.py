"""The baselines that CDS compares itself with on images. One file a method.

python edit.py --image scenes/cat/images/view000.jpg --src "a cat" --tgt "a pig" baseline=pnp

A method is a dataclass of its options: a `Baseline`, which samples an edited latent, or an `Objective`, which the
editor follows. A new one is a file here, an entry in BASELINES, and a YAML file in `configs/baseline/`. See
docs/baselines.md for sources and settings.
"""

from cds3d.baselines.ddpm_inversion import DDPMInversion
from cds3d.baselines.ddpm_p2p import DDPMP2P
from cds3d.baselines.ddpm_pnp import DDPMPnP
from cds3d.baselines.dds_pnp import DDSPnP
from cds3d.baselines.pnp import PnP
from cds3d.baselines.sdedit import SDEdit

BASELINES = {
    "sdedit": SDEdit,
    "ddpm-inversion": DDPMInversion,
    "ddpm-p2p": DDPMP2P,
    "ddpm-pnp": DDPMPnP,
    "pnp": PnP,
    "dds-pnp": DDSPnP,
}
