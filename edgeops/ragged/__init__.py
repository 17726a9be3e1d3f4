# SPDX-License-Identifier: Apache-2.0
"""Ragged batches: compute on real tokens only. CoRa (MLSys 2022).

Sequences of different lengths stand packed one after another in `[T, ...]` tensors; a `RaggedLayout` says where each
begins. Start with `convert(model)`, or use the ops directly.
"""

from edgeops import _native as _native
from edgeops.ragged._ops import register as _register
from edgeops.ragged.attention import ragged_attention as ragged_attention
from edgeops.ragged.bridges import from_nested as from_nested
from edgeops.ragged.bridges import to_nested as to_nested
from edgeops.ragged.conv import ragged_conv1d as ragged_conv1d
from edgeops.ragged.convert import RaggedEncoder as RaggedEncoder
from edgeops.ragged.convert import convert as convert
from edgeops.ragged.convert import encode_packed as encode_packed
from edgeops.ragged.explain import explain as explain
from edgeops.ragged.fused import add_layer_norm as add_layer_norm
from edgeops.ragged.fused import bias_gelu as bias_gelu
from edgeops.ragged.gemm import grouped_mm as grouped_mm
from edgeops.ragged.gemm import vgemm as vgemm
from edgeops.ragged.gemm import vgemm_packed as vgemm_packed
from edgeops.ragged.layout import RaggedLayout as RaggedLayout
from edgeops.ragged.layout import offsets_from_lengths as offsets_from_lengths
from edgeops.ragged.norm import ragged_instance_norm as ragged_instance_norm
from edgeops.ragged.pack import pack as pack
from edgeops.ragged.pack import unpack as unpack
from edgeops.ragged.pool import ragged_pool as ragged_pool
from edgeops.ragged.softmax import ragged_softmax as ragged_softmax
from edgeops.ragged.transformer import RaggedTransformerEncoder as RaggedTransformerEncoder
from edgeops.ragged.transformer import RaggedTransformerEncoderLayer as RaggedTransformerEncoderLayer
from edgeops.ragged.triangular import tradd as tradd
from edgeops.ragged.triangular import trmm as trmm
from edgeops.ragged.triangular import trmul as trmul
from edgeops.ragged.varlen import varlen_attn as varlen_attn

__all__ = [
    "RaggedEncoder",
    "RaggedLayout",
    "RaggedTransformerEncoder",
    "RaggedTransformerEncoderLayer",
    "add_layer_norm",
    "bias_gelu",
    "convert",
    "encode_packed",
    "explain",
    "from_nested",
    "grouped_mm",
    "offsets_from_lengths",
    "pack",
    "ragged_attention",
    "ragged_conv1d",
    "ragged_instance_norm",
    "ragged_pool",
    "ragged_softmax",
    "to_nested",
    "tradd",
    "trmm",
    "trmul",
    "unpack",
    "varlen_attn",
    "vgemm",
    "vgemm_packed",
]

# kept for the life of the process: dropping a torch Library unregisters its rules
_library = _register() if _native.available() else None
