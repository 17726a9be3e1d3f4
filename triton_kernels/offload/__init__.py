# SPDX-License-Identifier: Apache-2.0
"""GPU kernels of `edgeops.offload`: products with sparse projectors, and the update through them."""
