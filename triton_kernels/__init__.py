# SPDX-License-Identifier: Apache-2.0
"""Triton kernels, one folder per subsystem. Importing a submodule imports triton; importing this package does not."""
