# SPDX-License-Identifier: Apache-2.0
"""`edgeops info` always prints a diagnosis, whatever is missing or broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import edgeops
from edgeops.cli import _diagnosis, _plain, main
from edgeops.cli._app import build


def run(*arguments: str):
    return CliRunner().invoke(build(), list(arguments))


def test_json_has_every_part():
    done = run("info", "--json")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert sorted(found) == sorted(_diagnosis.PARTS)
    assert found["versions"]["edgeops"] == edgeops.__version__
    assert found["machine"]["instruction set"] == edgeops.cpu_isa()
    assert found["fast paths"] == edgeops.native_status()
    assert {"cli", "hf"} <= set(found["extras"])
    assert all(isinstance(value, str) for facts in found.values() for value in facts.values())


@pytest.mark.parametrize("arguments", [[], ["info"]], ids=["no command", "info"])
def test_tables_show_the_same_facts(arguments):
    done = run(*arguments)
    assert done.exit_code == 0
    for facts in _diagnosis.diagnose().values():
        for name in facts:
            assert name in done.stdout


def test_a_broken_part_is_shown_with_its_reason_and_the_others_stay(monkeypatch):
    def ill() -> dict[str, str]:
        raise OSError("the binary does not load")

    monkeypatch.setitem(_diagnosis._READERS, "fast paths", ill)
    found = _diagnosis.diagnose()
    assert found["fast paths"] == {"unknown": "OSError: the binary does not load"}
    assert found["versions"]["edgeops"] == edgeops.__version__


def test_an_unknown_instruction_set_does_not_hide_the_versions():
    environment = {**os.environ, "EDGEOPS_ISA": "abacus"}
    command = [sys.executable, "-m", "edgeops", "info", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert found["versions"]["edgeops"] == edgeops.__version__
    assert "abacus" in found["machine"]["unknown"]


def test_missing_packages_of_an_extra_are_named(monkeypatch):
    monkeypatch.setattr(_diagnosis, "_version", lambda package: None if package == "rich" else "1.0")
    assert _diagnosis.diagnose()["extras"]["cli"] == "missing rich: pip install 'edgeops[cli]'"


def plain(capsys, *arguments: str) -> tuple[int, str, str]:
    code = _plain.main(arguments)
    seen = capsys.readouterr()
    return code, seen.out, seen.err


def test_without_typer_info_is_plain_text(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit) as left:
        main(["info"])
    assert left.value.code == 0
    assert f"edgeops  {edgeops.__version__}" in capsys.readouterr().out


def test_plain_json_equals_the_other(capsys):
    code, out, _ = plain(capsys, "info", "--json")
    assert (code, json.loads(out)) == (0, _diagnosis.diagnose())


def test_without_typer_other_commands_say_what_to_install(capsys):
    code, out, err = plain(capsys, "tour", "--quick")
    assert (code, out) == (1, "")
    assert err == (
        "edgeops: commands other than info need the packages typer and rich; got tour --quick. "
        "Install them with: pip install 'edgeops[cli]'\n"
    )


def test_python_m_edgeops_prints_the_diagnosis_and_loads_no_extra():
    program = (
        "import runpy, sys\n"
        "sys.argv = ['edgeops']\n"
        "try:\n"
        "    runpy.run_module('edgeops', run_name='__main__')\n"
        "except SystemExit as left:\n"
        "    assert not left.code, left.code\n"
        "loaded = {'transformers', 'matplotlib', 'triton', 'jinja2', 'pythonbible'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert edgeops.__version__ in done.stdout
