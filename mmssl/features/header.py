"""store.json: the fingerprint of a store, and what was noted about it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmssl.errors import StoreError
from mmssl.features.fingerprint import SCHEMA, Fingerprint
from mmssl.features.shards import explain_write_errors, write_atomically

HEADER = "store.json"


def read_header(folder: Path, location: Path | str | None = None) -> tuple[Fingerprint, dict[str, Any]]:
    """Fingerprint and notes of a store.

    Args:
        folder: that holds the header.
        location: of the store in messages, where that is another.

    Raises:
        StoreError: there is no header, it is damaged, or it is of another layout.
    """
    path, name = folder / HEADER, folder if location is None else location
    try:
        header = json.loads(path.read_text())
        schema, fields = header["schema"], header["fingerprint"]
    except FileNotFoundError:
        raise StoreError(
            f"{name} is no feature store: it has no {HEADER}. `mmssl extract` makes one; or check the path."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{name}/{HEADER} is damaged: {error!r}. Extract again into another folder.") from error
    if schema != SCHEMA:
        raise StoreError(
            f"{name} was written in layout {schema} (mmssl {header.get('mmssl', 'unknown')}), this mmssl reads "
            f"layout {SCHEMA}. Read it with that version, or extract again into another folder."
        )
    fingerprint = Fingerprint(fields)
    if fingerprint.digest != header.get("digest"):
        raise StoreError(
            f"{name}/{HEADER} is damaged: its digest does not fit its fields. Extract again into another folder."
        )
    return fingerprint, dict(header.get("notes", {}))


def write_header(folder: Path, fingerprint: Fingerprint) -> None:
    """Write the header of a new store; one that another process has put there in the meantime stays."""
    temporary = folder / f"tmp-header-{os.getpid()}.json"
    _write(temporary, fingerprint, {})
    with explain_write_errors(folder):
        try:
            # a link, unlike a rename, does not replace what is there
            os.link(temporary, folder / HEADER)
        except FileExistsError:
            pass
        except OSError:
            temporary.replace(folder / HEADER)
        finally:
            temporary.unlink(missing_ok=True)


def write_notes(folder: Path, notes: Mapping[str, Any]) -> None:
    """Replace the notes of a store: plain values that features do not depend on, such as a measured error."""
    fingerprint, _ = read_header(folder)
    _write(folder / HEADER, fingerprint, notes)


def _write(path: Path, fingerprint: Fingerprint, notes: Mapping[str, Any]) -> None:
    fields = dict(fingerprint.fields)
    header = {"schema": SCHEMA, "mmssl": fields.get("mmssl"), "digest": fingerprint.digest, "fingerprint": fields}
    if notes:
        header["notes"] = dict(notes)
    content = f"{json.dumps(header, indent=1)}\n".encode()
    write_atomically(path, [content], path.with_name(f"tmp-header-{os.getpid()}.part"))
