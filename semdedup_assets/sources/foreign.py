"""What a file is that does not hold what its name promises, by its first bytes."""

HEAD = 64
"""How many first bytes suffice."""

# What is text itself, and so would be taken for a caption.
_TEXTS = (
    (b"version https://git-lfs.github.com/spec/", "a git-lfs pointer, not the file itself; run `git lfs pull` there"),
    (b"version https://hawser.github.com/spec/", "a git-lfs pointer, not the file itself; run `git lfs pull` there"),
    (b"<!doctype html", "a web page, such as that of an error or a login, not the file; download it again"),
    (b"<html", "a web page, such as that of an error or a login, not the file; download it again"),
    (b"<?xml", "an XML document, such as an object store's error or an SVG drawing, not the file; download it again"),
)
_KNOWN = (
    *_TEXTS,
    (b"par1", "a Parquet file; name it `.parquet`, and see which kind of source reads it"),
    (b"arrow1\0\0", "an Arrow file; write it as Parquet with `pyarrow.parquet.write_table`"),
    (b"\x93numpy", "a NumPy array; name it `.npy`, for `kind: vectors`"),
    (b"pk\x03\x04", "a ZIP archive; unpack it"),
    (b"rar!", "a RAR archive; unpack it"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it"),
    (b"\x1f\x8b", "packed with gzip; unpack it"),
    (b"\x28\xb5\x2f\xfd", "packed with Zstandard; unpack it"),
    (b"bzh", "packed with bzip2; unpack it"),
    (b"\xfd7zxz\0", "packed with xz; unpack it"),
    (b"sqlite format 3\0", "an SQLite database; export the table as Parquet"),
    (b"\x89hdf\r\n\x1a\n", "an HDF5 file; save the array as .npy or the table as Parquet"),
    (
        b"\x80\x04\x95",
        "a Python pickle, which runs code when it is read; save the array as .npy or the table as Parquet",
    ),
)


def foreign(head: bytes, *, own: bytes = b"", texts_only: bool = False) -> str | None:
    """What a file is by its first `HEAD` bytes, with the remedy.

    Args:
        head: the first bytes.
        own: with which the file should begin.
        texts_only: whether the file may hold any text, so that only pointers and documents of servers are known.

    Returns:
        None where the file begins as it should, or is of no known kind.
    """
    start = head.lstrip().lower()
    if own and head.startswith(own):
        return None
    known = _TEXTS if texts_only else _KNOWN
    return next((f"this is {what}" for magic, what in known if start.startswith(magic)), None)
