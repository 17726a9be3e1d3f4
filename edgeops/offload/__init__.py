# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning whose state does not fit the device: it lies on the host, and updates travel while layers compute.

`Pipeline` carries compressed gradients and updates, `simulate` and `choose` tell under which policy that is fast, and
`plan` what fits, before anything is bought. LSP-Offload (AAAI 2025).
"""

from edgeops.offload.emulate import EmulatedCompute as EmulatedCompute
from edgeops.offload.emulate import EmulatedLink as EmulatedLink
from edgeops.offload.links import CudaLink as CudaLink
from edgeops.offload.links import Link as Link
from edgeops.offload.links import MemoryLink as MemoryLink
from edgeops.offload.links import Task as Task
from edgeops.offload.pipeline import OffloadError as OffloadError
from edgeops.offload.pipeline import Pipeline as Pipeline
from edgeops.offload.pipeline import Unapplied as Unapplied
from edgeops.offload.plan import Plan as Plan
from edgeops.offload.plan import plan as plan
from edgeops.offload.schedule import Policy as Policy
from edgeops.offload.schedule import Profile as Profile
from edgeops.offload.schedule import transition_layer as transition_layer
from edgeops.offload.simulate import Simulation as Simulation
from edgeops.offload.simulate import bounds as bounds
from edgeops.offload.simulate import choose as choose
from edgeops.offload.simulate import simulate as simulate
