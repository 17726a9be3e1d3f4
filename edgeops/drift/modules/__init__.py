# SPDX-License-Identifier: Apache-2.0
"""DriftSurf around any `nn.Module`: candidates as one call over stacked parameters. Drift spec, section 12."""
