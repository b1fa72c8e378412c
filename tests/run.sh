#!/usr/bin/env bash
# Set up mmssl (tools/install.sh) and run its tests. Arguments go to pytest: tests/run.sh -m slow, tests/run.sh tests/unit
# MMSSL_DATA=FOLDER with emodb/, ravdess/, fsdd/, grid/, cifar10/ runs the tests on real corpora too.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
[ -z "${MMSSL_DATA:-}" ] || MMSSL_DATA="$(cd "$MMSSL_DATA" && pwd)"
cd "$root"
MMSSL_EXTRAS="test"
. tools/env.sh
if ! "$MMSSL_PYTHON" -c 'import pytest, hypothesis, xdist, pytest_timeout' 2>/dev/null; then
    printf 'The active environment lacks the test packages: pip install -c constraints.txt -e ".[test]"\n' >&2
    exit 1
fi
# one thread a process: on few cores several processes of one thread are faster than one of several
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
workers=()
case " $* " in *" -n"* | *" --pdb"* | *" -p no:xdist"*) ;; *) workers=(-n auto --dist worksteal) ;; esac
exec "$MMSSL_PYTHON" -m pytest "${workers[@]}" "$@"
