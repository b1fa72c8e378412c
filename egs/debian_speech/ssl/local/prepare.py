"""Debian's speech: prompts and acted dialogues in seven languages that come as Debian packages.

The packages are fetched with `apt-get download` and unpacked with `dpkg -x`, neither of which needs root, into
data/debian; or `data.root` names a folder that holds the .deb files, or the folders they were unpacked into.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from mmssl.errors import DataError
from mmssl.types import Clip

SUFFIXES = (".g722", ".wav", ".ogg")


@dataclass(frozen=True)
class Package:
    """One package: its language, and who speaks in it where all of it is one voice."""

    name: str
    language: str
    speaker: str | None = None


PACKAGES = (
    Package("asterisk-core-sounds-en-g722", "en", "allison-smith"),
    Package("asterisk-core-sounds-es-g722", "es", "allison-smith"),
    Package("asterisk-core-sounds-fr-g722", "fr", "june-wallack"),
    Package("asterisk-core-sounds-it-g722", "it", "carlo-flora"),
    Package("asterisk-core-sounds-ru-g722", "ru", "ivrvoice-ru"),
    Package("asterisk-prompt-it-menardi-wav", "it", "paola-dal-zot"),
    Package("fillets-ng-data-cs", "cs"),
    Package("fillets-ng-data-nl", "nl"),
)
# the two fish of the game speak in files named LEVEL-m-... and LEVEL-v-...; the many others are told apart by nothing
FISH = {"m": "small-fish", "v": "big-fish"}


def prepare(root: Path | None, folder: Path, packages: list[str] | None = None) -> list[Clip]:
    """Clips of all packages, with labels language and source, and copies of their licences in data/licences."""
    chosen = [p for p in PACKAGES if packages is None or p.name in packages]
    unknown = sorted(set(packages or ()) - {p.name for p in PACKAGES})
    if unknown or not chosen:
        raise DataError(f"data.options.packages: {unknown} is none of {', '.join(p.name for p in PACKAGES)}.")
    clips: list[Clip] = []
    for package in chosen:
        place = unpacked(root or folder / "debian", package.name, fetch_missing=root is None)
        keep_licence(place, folder / "licences" / f"{package.name}.txt")
        clips += clips_of(package, place)
    return clips


def unpacked(root: Path, name: str, fetch_missing: bool) -> Path:
    """The folder of a package's files; unpacks its .deb, which is fetched first where that is allowed."""
    place = root / name
    if (place / "usr").is_dir():
        return place
    archives = sorted(root.glob(f"{name}_*.deb"))
    if not archives and fetch_missing:
        root.mkdir(parents=True, exist_ok=True)
        run(["apt-get", "download", name], root)
        archives = sorted(root.glob(f"{name}_*.deb"))
    if not archives:
        raise DataError(
            f"{root} holds neither {name}_VERSION.deb nor a folder {name} with usr/ in it. Put it there, or leave "
            "data.root out on a Debian machine to have the packages fetched."
        )
    partial = root / f".{name}.part"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        run(["dpkg", "-x", archives[-1].name, partial.name], root)
        partial.replace(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return place


def run(command: list[str], where: Path) -> None:
    """Run a command of Debian, or say what is to be done without it."""
    try:
        done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise DataError(
            f"{command[0]} is not on this machine: fetch the packages on a Debian machine (apt-get download "
            f"{' '.join(p.name for p in PACKAGES)}), unpack each with dpkg -x into a folder of its name, and give the "
            "folder above as data.root=FOLDER."
        ) from error
    if done.returncode:
        raise DataError(
            f"`{' '.join(command)}` in {where} failed: {(done.stderr or done.stdout).strip()[-500:]} "
            "Is there a network, and does `apt-get update` know main? Else give the packages with data.root=FOLDER."
        )


def keep_licence(place: Path, copy: Path) -> None:
    """Copy the licence that Debian requires every package to carry."""
    found = sorted(place.glob("usr/share/doc/*/copyright"))
    if not found:
        raise DataError(f"{place} has no usr/share/doc/*/copyright: it is no whole Debian package.")
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(found[0], copy)


def clips_of(package: Package, place: Path) -> list[Clip]:
    """One clip for each sound file."""
    share = place / "usr" / "share"
    files = sorted(path for path in share.rglob("*") if path.suffix in SUFFIXES)
    if not files:
        raise DataError(f"{share} holds no file that ends with {', '.join(SUFFIXES)}.")
    clips = []
    for path in files:
        name = path.relative_to(share).with_suffix("").as_posix().replace("/", "-")
        role = path.stem.split("-")[1] if path.stem.count("-") > 1 else ""
        fish = f"{package.language}-{FISH[role]}" if package.speaker is None and role in FISH else None
        clips.append(
            Clip(
                id=f"{package.language}-{name}",
                audio=str(path),
                labels={"language": package.language, "source": package.name},
                speaker=package.speaker or fish,
            )
        )
    return clips
