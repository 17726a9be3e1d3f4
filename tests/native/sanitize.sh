#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds a copy of the tree with address and undefined-behaviour sanitizers and runs native and property tests in it.
#
#   tests/native/sanitize.sh [pytest arguments]     default: tests/ragged tests/properties, not slow
#
# PYTHON picks the interpreter (default: .venv, else python3). SANITIZE_DIR keeps the copy there and makes the next
# build incremental; without it the copy lives in a temporary folder. The ordinary in-place build is never touched.
# Outputs of this build are filled with NaN, so an element that a kernel never writes fails a test.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
if [[ -z ${PYTHON:-} ]]; then
  PYTHON=$root/.venv/bin/python
  [[ -x $PYTHON ]] || PYTHON=python3
fi
if [[ -n ${SANITIZE_DIR:-} ]]; then
  copy=$SANITIZE_DIR
  mkdir -p "$copy"
else
  copy=$(mktemp -d)
  trap 'rm -rf "$copy"' EXIT
fi

for tool in gcc g++; do
  command -v "$tool" >/dev/null || { echo "sanitize.sh: needs $tool; got no such command. Install build-essential." >&2; exit 2; }
done
runtime=$(gcc -print-file-name=libasan.so)
standard=$(g++ -print-file-name=libstdc++.so.6)
if [[ ! -e $runtime ]]; then
  echo "sanitize.sh: needs libasan.so of this gcc; got none. Install the matching libasan package (libgcc-NN-dev)." >&2
  exit 2
fi

(cd "$root" && tar --exclude='*.so' --exclude=__pycache__ --exclude=./bench/results -cf - \
  setup.py pyproject.toml README.md LICENSE csrc edgeops triton_kernels bench tests) | tar -xf - -C "$copy"

cd "$copy"
echo "building with sanitizers in $copy"
# checks as calls: the kernels, which inline everything, compile 8 times faster than with checks in place
export CFLAGS="${CFLAGS:-} --param=asan-instrumentation-with-call-threshold=0"
EDGEOPS_SANITIZE=1 EDGEOPS_CUDA=0 MAX_JOBS=${MAX_JOBS:-2} "$PYTHON" setup.py -q build_ext --inplace >build.log 2>&1 ||
  { tail -n 40 build.log >&2; exit 1; }

echo "built in $SECONDS s"

if [[ $# -eq 0 ]]; then
  set -- tests/ragged tests/batching tests/offload tests/drift tests/properties -m "not slow"
fi
# libasan alone dies inside torch: its interceptors must find the C++ runtime that throws the exceptions
export LD_PRELOAD="$runtime $standard"
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=0:exitcode=99
# undefined behaviour is reported once for each place, and the run goes on to find all of them; it fails at the end
export UBSAN_OPTIONS=halt_on_error=0:print_stacktrace=1
export PYTHONPATH=$copy PYTHONDONTWRITEBYTECODE=1
status=0
# pytest must not capture the file descriptor that the sanitizers write to
"$PYTHON" -X faulthandler -m pytest -q -p no:cacheprovider --capture=sys --hypothesis-profile=sanitize -rfE --tb=short \
  "$@" 2>report.log || status=$?
unset LD_PRELOAD
cat report.log >&2
if grep -qE "runtime error:|ERROR: AddressSanitizer" report.log; then
  echo "sanitize.sh: sanitizer reports, each with a stack above:" >&2
  grep -hE "runtime error:|ERROR: AddressSanitizer" report.log | sed "s|$copy/||" | sort -u >&2
  status=99
fi
echo "sanitize.sh: exit status $status after $SECONDS s" >&2
exit "$status"
