"""Embeddings of clips as one file: NumPy, Parquet or safetensors, by its ending."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mmssl.errors import ConfigError, DataError
from mmssl.files import replace_file

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = (".npz", ".parquet", ".safetensors")


def check_output(path: Path) -> None:
    """Refuse a file that could not be written, before anything is computed.

    Raises:
        ConfigError: another ending, or a package is missing.
        DataError: its folder does not exist.
    """
    if path.suffix not in FORMATS:
        raise ConfigError(f"The output {path} must end in {', '.join(FORMATS)}: the ending says the format.")
    if not path.parent.is_dir():
        raise DataError(f"The folder {path.parent} of the output does not exist: make it first.")
    if path.suffix == ".parquet":
        _pyarrow()


def write_embeddings(path: Path, embeddings: Mapping[str, Tensor]) -> None:
    """Write id -> (E,) float32, in the order given, whole or not at all.

    Raises:
        ConfigError, DataError: as `check_output`.
    """
    import numpy as np
    import torch

    check_output(path)
    names, table = list(embeddings), torch.stack(list(embeddings.values())).float().numpy()
    buffer = io.BytesIO()
    if path.suffix == ".npz":
        np.savez(buffer, ids=np.array(names), embeddings=table)
        content = buffer.getvalue()
    elif path.suffix == ".safetensors":
        from safetensors.numpy import save

        content = save({"embeddings": table}, {"ids": json.dumps(names)})
    else:
        arrow, parquet = _pyarrow()
        rows = arrow.FixedSizeListArray.from_arrays(arrow.array(table.reshape(-1)), table.shape[1])
        parquet.write_table(arrow.table({"id": arrow.array(names), "embedding": rows}), buffer)
        content = buffer.getvalue()
    with replace_file(path) as file:
        file.write(content)


def _pyarrow():  # type: ignore[no-untyped-def]
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError("Parquet needs pyarrow: pip install 'mmssl[export]', or write .npz.") from error
    return pyarrow, pyarrow.parquet
