# SPDX-License-Identifier: Apache-2.0
"""Dynamic models of the two papers, one definition each: inside a session they run batched, outside node by node."""

from edgeops.batching.models.drnn import DRNN as DRNN
from edgeops.batching.models.early_exit import EarlyExit as EarlyExit
from edgeops.batching.models.lattice import LatticeGRU as LatticeGRU
from edgeops.batching.models.lattice import LatticeLSTM as LatticeLSTM
from edgeops.batching.models.model import Model as Model
from edgeops.batching.models.nested_rnn import NestedRNN as NestedRNN
from edgeops.batching.models.stack_rnn import StackRNN as StackRNN
from edgeops.batching.models.tagger import Tagger as Tagger
from edgeops.batching.models.tree import MVRNNTree as MVRNNTree
from edgeops.batching.models.tree import TreeGRU as TreeGRU
from edgeops.batching.models.tree import TreeLSTM as TreeLSTM
