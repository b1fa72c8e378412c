# Sourced by run.sh and tests/run.sh: sets MMSSL_PYTHON to a Python that has this checkout of mmssl, installing it if needed.
#
#   . tools/env.sh        MMSSL_EXTRAS="test lint" names extras of setup.cfg to install as well
#
# An active environment that already has this checkout (pip install -e) is used as it is.

mmssl_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
MMSSL_PYTHON=""
if mmssl_found="$(python -I -c 'import importlib.metadata, mmssl; importlib.metadata.version("torch"); print(mmssl.__file__)' 2>/dev/null)" &&
    [ "$mmssl_found" = "$mmssl_root/mmssl/__init__.py" ]; then
    MMSSL_PYTHON="$(command -v python)"
else
    # shellcheck disable=SC2086  # one word per extra
    bash "$mmssl_root/tools/install.sh" ${MMSSL_EXTRAS:-} || exit 1
    MMSSL_PYTHON="$mmssl_root/.venv/bin/python"
fi
unset mmssl_found
export MMSSL_PYTHON
