# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning where the model fits and its training state does not: LSP-Offload (AAAI 2025) as an optimizer.

Start with `LSPAdamW`. Its updates can travel while layers compute (`Pipeline`); `simulate` and `choose` tell under
which policy that is fast, and `plan` what fits, before anything is bought.
"""

from edgeops import _native as _native
from edgeops.offload._ops import register as _register
from edgeops.offload.emulate import EmulatedCompute as EmulatedCompute
from edgeops.offload.emulate import EmulatedLink as EmulatedLink
from edgeops.offload.fit import Fit as Fit
from edgeops.offload.fit import fit as fit
from edgeops.offload.hook import SubspaceHookState as SubspaceHookState
from edgeops.offload.hook import subspace_hook as subspace_hook
from edgeops.offload.linear import SubspaceLinear as SubspaceLinear
from edgeops.offload.links import CudaLink as CudaLink
from edgeops.offload.links import Link as Link
from edgeops.offload.links import MemoryLink as MemoryLink
from edgeops.offload.links import Task as Task
from edgeops.offload.lsp import LSPAdamW as LSPAdamW
from edgeops.offload.moments import transfer as transfer
from edgeops.offload.pair import Pair as Pair
from edgeops.offload.pipeline import OffloadError as OffloadError
from edgeops.offload.pipeline import Pipeline as Pipeline
from edgeops.offload.pipeline import Unapplied as Unapplied
from edgeops.offload.plan import Plan as Plan
from edgeops.offload.plan import plan as plan
from edgeops.offload.projector import DenseProjector as DenseProjector
from edgeops.offload.projector import IdentityProjector as IdentityProjector
from edgeops.offload.projector import Projector as Projector
from edgeops.offload.projector import SparseProjector as SparseProjector
from edgeops.offload.projector import projector_of as projector_of
from edgeops.offload.schedule import Policy as Policy
from edgeops.offload.schedule import Profile as Profile
from edgeops.offload.schedule import transition_layer as transition_layer
from edgeops.offload.simulate import Simulation as Simulation
from edgeops.offload.simulate import bounds as bounds
from edgeops.offload.simulate import choose as choose
from edgeops.offload.simulate import simulate as simulate
from edgeops.offload.subspace import subspace_expand as subspace_expand
from edgeops.offload.subspace import subspace_project as subspace_project

# kept for the life of the process: dropping a torch Library unregisters its rules
_library = _register() if _native.available() else None
