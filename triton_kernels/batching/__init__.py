# SPDX-License-Identifier: Apache-2.0
"""GPU kernels of `edgeops.batching`: products whose left side is rows of tables."""
