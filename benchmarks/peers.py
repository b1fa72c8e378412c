"""Other toolkits in an environment of their own, on top of the one that runs the script: there is one torch."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

INSIDE = "MMSSL_PEER_ENVIRONMENT"


def enter(name: str, packages: Sequence[str]) -> None:
    """Go on with the script in an environment that has these packages too; it is made once, in the temporary folder.

    Both sides of a comparison then run in one process, with one torch. The packages are installed without what they
    ask for: list what they need at run time and the script's own environment lacks.

    Args:
        name: of the environment.
        packages: as pip takes them, with versions.

    Raises:
        SystemExit: pip cannot install them; its own words are printed.
    """
    if os.environ.get(INSIDE) == name:
        return
    folder = Path(tempfile.gettempdir()) / "mmssl-peers" / name
    python = folder / "bin" / "python"
    stamp = folder / "packages.txt"
    wanted = "\n".join(packages)
    if not stamp.is_file() or stamp.read_text() != wanted:
        venv.create(folder, with_pip=False, clear=True, symlinks=True)
        own = sysconfig.get_path("purelib")
        inner = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
        (inner / "base.pth").write_text(f"import site; site.addsitedir({own!r})\n")
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
        if subprocess.run([*pip, *packages], check=False).returncode:
            raise SystemExit(f"pip cannot install {', '.join(packages)}: see above.")
        stamp.write_text(wanted)
    os.execve(python, [str(python), *sys.argv], {**os.environ, INSIDE: name})
