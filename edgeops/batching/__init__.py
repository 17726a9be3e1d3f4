# SPDX-License-Identifier: Apache-2.0
"""Dynamic graphs run batched: record cells, schedule them, run every batch at once. ED-Batch (ICML 2023), ACRoBat.

Trees, lattices, parsers: a program that runs one node at a time is recorded, and equal cells of all instances of a
mini-batch run together.
"""

from edgeops.batching.layout import Layout as Layout
from edgeops.batching.layout import judge_order as judge_order
from edgeops.batching.layout import plan_layout as plan_layout
from edgeops.batching.static_cell import CellGraph as CellGraph
from edgeops.batching.static_cell import CellPlan as CellPlan
from edgeops.batching.static_cell import plan_cell as plan_cell
