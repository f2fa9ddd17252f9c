"""Compress text as .gz and .zst files, which may have several members, like concatenated files."""

import gzip

MAX_BLOCK = 1 << 17  # The maximum block size of the zstd format, in bytes.


def compress(content: bytes, ending: str, members: int = 1) -> bytes:
    """Return the content of a file with this extension: ".gz" or ".zst", or "" for a plain file.

    Args:
        content: The text.
        ending: The file name extension.
        members: The number of compressed parts, which are concatenated.
    """
    if not ending:
        return content
    size = -(-len(content) // members) or 1
    parts = [content[start : start + size] for start in range(0, len(content), size)] or [b""]
    return b"".join(gzip.compress(part, 1, mtime=0) if ending == ".gz" else zstd_frame(part) for part in parts)


def zstd_frame(content: bytes) -> bytes:
    """Return a zstd frame of uncompressed blocks. Python has no zstd compressor before version 3.14."""
    single_segment_with_8_byte_size = b"\xe0"
    frame = b"\x28\xb5\x2f\xfd" + single_segment_with_8_byte_size + len(content).to_bytes(8, "little")
    blocks = [content[start : start + MAX_BLOCK] for start in range(0, len(content), MAX_BLOCK)] or [b""]
    for number, block in enumerate(blocks):
        is_last = number == len(blocks) - 1
        frame += (len(block) << 3 | is_last).to_bytes(3, "little") + block
    return frame
