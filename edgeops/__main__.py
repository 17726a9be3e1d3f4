# SPDX-License-Identifier: Apache-2.0
"""`python -m edgeops` is the `edgeops` command; without arguments it prints the diagnosis of `edgeops info`."""

from edgeops.cli import main

if __name__ == "__main__":
    main()
