# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: workloads described once (`registry`), run with a gate and a roof, judged (`check`), shown (`render`)."""
