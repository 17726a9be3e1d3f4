# SPDX-License-Identifier: Apache-2.0
"""Dynamic graphs run batched: record cells, schedule them, run every batch at once. ED-Batch (ICML 2023), ACRoBat.

Trees, lattices, parsers: a program that runs one node at a time is recorded, and equal cells of all instances of a
mini-batch run together.
"""
