# SPDX-License-Identifier: Apache-2.0
"""Whole models on packed rows. CoRa (MLSys 2022), section 3.1: position-wise layers become dense layers on real tokens.

`convert` is the way in, `encode_packed` the way to results without padding, `RaggedEncoder` takes lists of sequences.
"""

from edgeops.ragged.convert._convert import convert as convert
from edgeops.ragged.convert._convert import is_converted as is_converted
from edgeops.ragged.convert._encode import RaggedEncoder as RaggedEncoder
from edgeops.ragged.convert._encode import encode_packed as encode_packed

__all__ = ["RaggedEncoder", "convert", "encode_packed", "is_converted"]
