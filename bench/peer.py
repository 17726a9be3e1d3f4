# SPDX-License-Identifier: Apache-2.0
"""A program of another Python environment that answers a line for every line it is given."""

from __future__ import annotations

import os
import subprocess

from bench import inputs
from bench.registry import Unavailable


class Peer:
    """The program in a process of its own.

    Args:
        program: a file of `bench`, from there.
        environment: its name, which `make` knows: the folder `.venv-<name>`.
        variable: of the shell, which may name another Python.
        absent: what is said where neither is there.
        variables: for the process, beside this one's.

    Raises:
        Unavailable: there is no such environment.
    """

    def __init__(self, program: str, environment: str, variable: str, absent: str, **variables: str) -> None:
        python = os.environ.get(variable, str(inputs.ROOT / f".venv-{environment}" / "bin" / "python"))
        if not os.path.isfile(python):
            raise Unavailable(absent)
        self._process = subprocess.Popen(
            [python, str(inputs.ROOT / "bench" / program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **variables},
        )

    def ask(self, line: str, until: str = "") -> str:
        """The answer, or the first that is `until`; nothing where the program has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its output has ended, too
        for answer in self._process.stdout:
            if not until or answer.strip() == until:
                return answer.strip()
        return ""

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
