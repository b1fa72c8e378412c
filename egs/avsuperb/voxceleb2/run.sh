#!/usr/bin/env bash
# Run this recipe: ./run.sh --help explains. The same few lines in every folder of egs.
set -euo pipefail

export MMSSL_CALLER_DIR="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")"
. ../../../tools/env.sh
exec "$MMSSL_PYTHON" -m mmssl.stages "$@"
