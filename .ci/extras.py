# SPDX-License-Identifier: Apache-2.0
"""Print the requirements of extras of the installed package, so that they can be installed without building it again.

python .ci/extras.py tour test
"""

import sys
from importlib.metadata import requires

from packaging.requirements import Requirement


def main(wanted: list[str]) -> None:
    """Follow extras that name other extras of the package."""
    seen: set[str] = set()
    while wanted:
        extra = wanted.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for text in requires("edgeops") or []:
            need = Requirement(text)
            if need.marker is None or not need.marker.evaluate({"extra": extra}):
                continue
            if need.name == "edgeops":
                wanted += need.extras
            elif "extra" in str(need.marker):
                print(f"{need.name}{need.specifier}")


if __name__ == "__main__":
    main(sys.argv[1:])
