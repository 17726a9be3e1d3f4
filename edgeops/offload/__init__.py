# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning where the model fits and its training state does not: LSP-Offload (AAAI 2025) as an optimizer."""

from edgeops import _native as _native
from edgeops.offload._ops import register as _register
from edgeops.offload.fit import Fit as Fit
from edgeops.offload.fit import fit as fit
from edgeops.offload.linear import SubspaceLinear as SubspaceLinear
from edgeops.offload.lsp import LSPAdamW as LSPAdamW
from edgeops.offload.moments import transfer as transfer
from edgeops.offload.pair import Pair as Pair
from edgeops.offload.projector import DenseProjector as DenseProjector
from edgeops.offload.projector import IdentityProjector as IdentityProjector
from edgeops.offload.projector import Projector as Projector
from edgeops.offload.projector import SparseProjector as SparseProjector
from edgeops.offload.projector import projector_of as projector_of
from edgeops.offload.subspace import subspace_expand as subspace_expand
from edgeops.offload.subspace import subspace_project as subspace_project

# kept for the life of the process: dropping a torch Library unregisters its rules
_library = _register() if _native.available() else None
