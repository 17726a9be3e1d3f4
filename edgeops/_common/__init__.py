# SPDX-License-Identifier: Apache-2.0
"""What every subsystem shares: the form of error messages."""

from edgeops._common.errors import describe as describe
from edgeops._common.errors import message as message
from edgeops._common.errors import missing_extra as missing_extra
