# SPDX-License-Identifier: Apache-2.0
from edgeops.ragged.convert._convert import convert as convert
from edgeops.ragged.convert._convert import is_converted as is_converted
