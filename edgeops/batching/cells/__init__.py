# SPDX-License-Identifier: Apache-2.0
"""Built-in cells on native kernels: they read operands through row lists and write into tables, nothing is gathered."""

from edgeops.batching.cells.lstm import LSTM as LSTM
from edgeops.batching.cells.tree_lstm import BinaryTreeLSTM as BinaryTreeLSTM
