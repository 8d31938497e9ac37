"""Applies a differencing VHD to a raw image as XAPI's import does: front to back, never looking back.

Written from the description of that import, not from Cairn's code: the footer at 0 leads to the header, the header to the
BAT; blocks are taken in the order in which they stand; only sectors set in a block's bitmap are written; the footer at the
end is found from the stream's length. usage: apply_delta.py LENGTH IMAGE < delta.vhd
"""

import itertools
import struct
import sys

SECTOR = 512


class Stream:
    def __init__(self, file):
        self.file, self.position = file, 0

    def take(self, count):
        data = self.file.read(count)
        assert len(data) == count, f"the stream ends at byte {self.position + len(data)}"
        self.position += count
        return data

    def forward_to(self, offset):
        assert offset >= self.position, f"byte {offset} was passed: the stream stands at {self.position}"
        self.take(offset - self.position)


def checked(record, at):
    (stored,) = struct.unpack_from(">I", record, at)
    summed = ~(sum(record) - sum(record[at:at + 4])) & 0xFFFFFFFF
    assert stored == summed, "checksum"
    return record


def main():
    length, image = int(sys.argv[1]), open(sys.argv[2], "r+b")
    stream = Stream(sys.stdin.buffer)
    footer = checked(stream.take(SECTOR), 64)
    assert footer[:8] == b"conectix" and struct.unpack_from(">I", footer, 60) == (4,)
    (header_at,), (size,) = struct.unpack_from(">Q", footer, 16), struct.unpack_from(">Q", footer, 48)
    stream.forward_to(header_at)
    header = checked(stream.take(1024), 36)
    assert header[:8] == b"cxsparse" and any(header[40:56])
    (table_at,), (entries, block_size) = struct.unpack_from(">Q", header, 16), struct.unpack_from(">II", header, 28)
    assert block_size == 2 << 20 and entries == -(-size // block_size)
    stream.forward_to(table_at)
    table = struct.unpack(f">{entries}I", stream.take(4 * entries))
    image.truncate(size)
    for sector, block in sorted((sector, block) for block, sector in enumerate(table) if sector != 0xFFFFFFFF):
        stream.forward_to(sector * SECTOR)
        bitmap, data = stream.take(SECTOR), stream.take(block_size)
        sectors = range(min(block_size, size - block * block_size) // SECTOR)
        for is_set, run in itertools.groupby(sectors, lambda at: bool(bitmap[at // 8] & (0x80 >> at % 8))):
            if is_set:
                first, *rest = run
                image.seek(block * block_size + first * SECTOR)
                image.write(data[first * SECTOR:(first + 1 + len(rest)) * SECTOR])
    stream.forward_to((length - 1) // SECTOR * SECTOR)
    assert stream.take(SECTOR) == footer, "the footers differ"
    assert not sys.stdin.buffer.read(1), "something follows the footer"


main()
