#!/usr/bin/env bash
# Set up mmssl in the virtual environment .venv at the root of this checkout.
#
#   tools/install.sh [extra ...]      extras of setup.cfg, for example: tools/install.sh test lint
#
# Running it again does nothing and needs no network, unless setup.cfg or constraints.txt changed or an extra is new.
# MMSSL_PYTHON_BASE names the Python (>= 3.11) to make the environment with; without it the newest one found is taken.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"
stamp="$venv/mmssl-installed"

say() { printf '[install] %s\n' "$*" >&2; }

find_python() {
    local candidate
    for candidate in "${MMSSL_PYTHON_BASE:-}" python3.13 python3.12 python3.11 python3 python; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    say "No Python >= 3.11 found. Install one, or name it: MMSSL_PYTHON_BASE=/path/to/python3.11 $0"
    return 1
}

wanted() {
    # what the stamp must say: the requirements' digest, then the extras in order
    cat "$root/setup.cfg" "$root/constraints.txt" | { sha256sum 2>/dev/null || shasum -a 256; } | cut -d' ' -f1
    printf '%s\n' "$@" | sort -u | grep . || true
}

installed() {
    [ -f "$stamp" ] && [ -x "$venv/bin/python" ] || return 1
    [ "$(head -n 1 "$stamp")" = "$(wanted | head -n 1)" ] || return 1
    local extra
    for extra in "$@"; do
        grep -qx "$extra" "$stamp" || return 1
    done
}

installed "$@" && exit 0

if command -v flock >/dev/null 2>&1; then
    exec 9>"$root/.venv.lock"
    flock -n 9 || { say "Another installation is running; waiting for it."; flock 9; }
    installed "$@" && exit 0
fi

# extras that an earlier call installed stay
extras=("$@")
if [ -f "$stamp" ]; then
    while read -r extra; do extras+=("$extra"); done < <(tail -n +2 "$stamp")
fi
mapfile -t extras < <(printf '%s\n' "${extras[@]}" | sort -u | grep . || true)

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python="$(find_python)"
    say "Making the virtual environment $venv with $python."
    "$python" -m venv --clear "$venv"
fi
target="$root"
if [ "${#extras[@]}" -gt 0 ]; then
    target="$root[$(IFS=,; printf '%s' "${extras[*]}")]"
fi
say "Installing $target under constraints.txt: some minutes and about 6 GB the first time, nothing to do afterwards."
rm -f "$stamp"
log="$venv/mmssl-install.log"
if ! "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt" -e "$target" >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    say "pip failed; its whole output is in $log. Run $0 again once the cause is mended: what is installed stays."
    exit 1
fi
wanted "${extras[@]}" >"$stamp.new"
mv "$stamp.new" "$stamp"
say "Done: $("$venv/bin/python" -c 'import sys, importlib.metadata as m; print("mmssl", m.version("mmssl"), "on Python", sys.version.split()[0], "with torch", m.version("torch"))')."
