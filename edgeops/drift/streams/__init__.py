# SPDX-License-Identifier: Apache-2.0
"""Streams with drifts at known places: `read_stream` for files, `synthetic` for generators."""

from edgeops.drift.streams import concepts as concepts
from edgeops.drift.streams import files as files
from edgeops.drift.streams import synthetic as synthetic
from edgeops.drift.streams.delayed import Delayed as Delayed
from edgeops.drift.streams.files import read_rows as read_rows
from edgeops.drift.streams.files import read_stream as read_stream
from edgeops.drift.streams.stream import DriftStream as DriftStream
from edgeops.drift.streams.tables import from_frame as from_frame
from edgeops.drift.streams.tables import read_csv as read_csv
