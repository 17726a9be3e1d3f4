# SPDX-License-Identifier: Apache-2.0
import dataclasses
import platform
import socket
import subprocess

import pytest
import torch

from edgeops import cpu_isa
from edgeops.perf import capture, environment, thread_count


def test_capture_says_what_is_running():
    seen = capture()
    assert (seen.torch, seen.python) == (torch.__version__, platform.python_version())
    assert seen.isa == cpu_isa()
    assert seen.threads == torch.get_num_threads()
    assert seen.cpu


def test_threads_are_those_of_the_moment():
    with thread_count(1):
        assert capture().threads == 1


def test_no_host_name_and_no_path():
    text = str(dataclasses.asdict(capture()))
    assert "/" not in text.replace("/s", "")
    host = socket.gethostname()
    assert len(host) < 4 or host not in text


def test_machine_id_depends_on_the_hardware_alone():
    one = environment.machine_id("x86_64", "cpu", 2, 16, None)
    assert one == environment.machine_id("x86_64", "cpu", 2, 16, None)
    others = [("arm64", "cpu", 2, 16, None), ("x86_64", "cpu", 4, 16, None), ("x86_64", "cpu", 2, 16, "gpu")]
    assert one not in [environment.machine_id(*other) for other in others]


def test_outside_of_a_checkout_there_is_no_commit(tmp_path):
    assert environment.repository_root(tmp_path) is None
    seen = capture(tmp_path)
    assert (seen.commit, seen.dirty) == (None, None)


def _git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_commit_and_changes_of_a_checkout(tmp_path):
    _git(tmp_path, "init", "-q")
    (tmp_path / "f").write_text("1")
    _git(tmp_path, "add", "f")
    _git(tmp_path, "commit", "-qm", "one")
    clean = capture(tmp_path)
    (tmp_path / "f").write_text("2")
    changed = capture(tmp_path)
    assert (clean.dirty, changed.dirty) == (False, True)
    assert clean.commit == changed.commit
    assert len(clean.commit) == 12


def test_a_machine_without_git_has_no_commit(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(environment.subprocess, "run", missing)
    assert capture().commit is None


def test_thread_count_is_restored_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="inside"), thread_count(before + 1):
        raise RuntimeError("inside")
    assert torch.get_num_threads() == before


def test_thread_count_refuses_zero():
    with pytest.raises(ValueError, match="threads must be 1 or more; got 0"), thread_count(0):
        pass
