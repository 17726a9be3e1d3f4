# SPDX-License-Identifier: Apache-2.0
"""Logistic regression by STRSAGA, and every way to learn it from a drifting stream. Drift spec, sections 3 to 5."""
