"""The bytes of a stored row, as docs/formats.md describes them under "Row".

`Replica.StreamKeys` gives rows as they are stored: with their tombstones and clocks, for tools that
keep copies of a cluster. This decodes as much of them as an export needs: the live values.
"""

from dataclasses import dataclass

LAST_WRITE_WINS = 1 << 0
ALL_DEAD = 1 << 1
HAS_EXPIRY = 1 << 2
HAS_TOKENS = 1 << 3
NO_VERSION = 1 << 5

KIND = 3
KIND_EXPIRES = 4
VALUE = 0


@dataclass
class Value:
    """A live value of a key."""

    value: bytes
    content_type: str
    expires_at_ms: int  # 0 for never


class Reader:
    """A cursor over the bytes of a row. Raises ValueError where they end too early."""

    def __init__(self, data: bytes):
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise ValueError(f"the row is cut short at byte {self.at}")
        taken = self.data[self.at : end]
        self.at = end
        return taken

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self) -> int:
        value = 0
        for shift in range(0, 64, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError(f"a number without end before byte {self.at}")

    def sized(self) -> bytes:
        return self.take(self.varint())

    def rest(self) -> bytes:
        return self.take(len(self.data) - self.at)


def values_of(row: bytes, now_ms: int) -> list[Value]:
    """The values that a reader finds in a row at `now_ms`, in the order in which they are stored."""
    reader = Reader(row)
    flags = reader.byte()
    if flags & LAST_WRITE_WINS:
        values = _last_write_wins(flags, reader)
    else:
        values = _siblings(flags, reader)
    return [v for v in values if v.expires_at_ms == 0 or v.expires_at_ms > now_ms]


def _last_write_wins(flags: int, reader: Reader) -> list[Value]:
    if flags & (ALL_DEAD | NO_VERSION):
        return []
    reader.take(16)  # time and actor
    expires_at_ms = reader.varint() if flags & HAS_EXPIRY else 0
    if flags & HAS_TOKENS:
        reader.take(24 * reader.varint())
    content_type = reader.sized().decode()
    return [Value(reader.rest(), content_type, expires_at_ms)]


def _siblings(flags: int, reader: Reader) -> list[Value]:
    reader.take(16 * reader.varint())  # the clock
    if flags & HAS_TOKENS:
        reader.take(24 * reader.varint())
    values = []
    for _ in range(reader.varint()):
        kind = reader.byte()
        reader.varint()  # whose dot it is
        reader.varint()  # and when it was written
        expires_at_ms = reader.varint() if kind & KIND_EXPIRES else 0
        if kind & KIND == VALUE:
            content_type = reader.sized().decode()
            values.append(Value(reader.sized(), content_type, expires_at_ms))
    return values
