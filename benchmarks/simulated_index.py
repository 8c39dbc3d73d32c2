"""An index over shards that do not exist, as large as one likes: the columns of samples are holes of a sparse file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from webssl_fast.data.column_file import layout


def write_simulated_index(path: Path, num_samples: int, num_shards: int) -> None:
    """Writes it; what is real in it is the table of the shards, so that it takes a few MB on disk."""
    names = [f"s3://bucket/{i:06d}.tar".encode() for i in range(num_shards)]
    real: dict[str, np.ndarray] = {
        "files": np.frombuffer(b"".join(names), np.uint8),
        "file_name_starts": np.arange(num_shards + 1, dtype=np.int64) * len(names[0]),
        "file_starts": np.linspace(0, num_samples, num_shards + 1).astype(np.int64),
        "end_blocks": np.full(num_shards, 2**21, np.uint32),
        "problems": np.zeros(0, np.uint8),
    }
    columns = {name: (array.dtype.str, len(array)) for name, array in real.items()}
    columns |= {name: ("<u4", num_samples) for name in ("blocks", "sizes", "leads")}
    header = {
        "kind": "index",
        "source_kind": "tar",
        "source": "simulated",
        "listing": "",
        "root": "",
        "num_samples": num_samples,
        "identity": "simulated",
        "class_names": [],
        "image_column": "",
        "text_column": None,
    }
    prefix, offsets, size = layout(header, columns)
    with open(path, "wb") as file:
        file.write(prefix)
        for name, array in real.items():
            file.seek(offsets[name])
            file.write(array.tobytes())
        file.truncate(size)
