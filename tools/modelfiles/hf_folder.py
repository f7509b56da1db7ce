"""Writes Hugging Face model folders: safetensors, JSON files, and a folder that appears whole or not at all."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

MANIFEST = "manifest.json"  # what the folder was made from, and the SHA-256 of each of its files


class FolderError(Exception):
    """The target folder cannot be written, said in words for the user."""


def to_bf16_bits(values):
    """float32 -> bfloat16 bit patterns (uint16), rounded to nearest even. Requires finite values."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


_ENCODERS = {
    "BF16": to_bf16_bits,
    "F16": lambda values: values.astype("<f2"),
    "F32": lambda values: values.astype("<f4"),
}


def write_safetensors(path, shapes, tensor, dtype="BF16", progress=None):
    """Writes the tensors named in `shapes` {name: shape}; `tensor(name)` gives the float32 values, one at a time."""
    width = 4 if dtype == "F32" else 2
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        end = offset + width * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for index, (name, shape) in enumerate(shapes.items()):
            values = tensor(name)
            if tuple(values.shape) != tuple(shape):
                raise ValueError(f"tensor {name} has shape {values.shape}, expected {shape}")
            file.write(_ENCODERS[dtype](values).tobytes())
            if progress is not None:
                progress(index + 1, len(shapes))


def write_json(path, value):
    Path(path).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def file_sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_current(folder, source):
    """Whether `folder` was made from `source` and every file still has the digest it was written with."""
    try:
        manifest = json.loads((Path(folder) / MANIFEST).read_text())
        return manifest["source"] == source and all(
            file_sha256(Path(folder) / name) == digest for name, digest in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@contextlib.contextmanager
def new_folder(target, source):
    """Yields a temporary folder beside `target`; when the block ends well, it becomes `target`, with a manifest.

    An existing `target` is replaced only if we made it (it has a manifest) or it is empty.
    """
    target = Path(target).absolute()
    if target.exists() and not target.is_dir():
        raise FolderError(f"{target} exists and is not a folder")
    if target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).exists():
        raise FolderError(f"{target} has files that this tool did not make; name another folder or remove it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise FolderError(f"cannot write beside {target}: {error.strerror}") from error
    try:
        yield building
        digests = {path.name: file_sha256(path) for path in sorted(building.iterdir())}
        write_json(building / MANIFEST, {"source": source, "files": digests})
        building.chmod(0o755)
        for path in building.iterdir():
            _sync(path)
        _sync(building)
        _swap(building, target)
        _sync(target.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _swap(building, target):
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
        os.rename(target, old)  # onto an empty folder: allowed
        os.rename(building, target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(building, target)


def _sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
