# SPDX-License-Identifier: Apache-2.0
"""Built-in cells on native kernels: they read operands through row lists and write into tables, nothing is gathered."""

from edgeops.batching.cells.classifier import Classifier as Classifier
from edgeops.batching.cells.decisions import DecisionLoss as DecisionLoss
from edgeops.batching.cells.dense import Dense as Dense
from edgeops.batching.cells.embedding import Embedding as Embedding
from edgeops.batching.cells.gru import GRU as GRU
from edgeops.batching.cells.lstm import LSTM as LSTM
from edgeops.batching.cells.mv_rnn import MVRNN as MVRNN
from edgeops.batching.cells.ragged_sum import RaggedSum as RaggedSum
from edgeops.batching.cells.tree_gru import BinaryTreeGRU as BinaryTreeGRU
from edgeops.batching.cells.tree_lstm import BinaryTreeLSTM as BinaryTreeLSTM
