# SPDX-License-Identifier: Apache-2.0
"""GPU kernels of `edgeops.ragged`: attention, pack and unpack, pooling, and the fused row operators."""
