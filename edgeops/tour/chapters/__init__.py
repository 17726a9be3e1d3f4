# SPDX-License-Identifier: Apache-2.0
"""One file per chapter, each defining `CHAPTER`; files with a leading underscore are helpers of a chapter."""
