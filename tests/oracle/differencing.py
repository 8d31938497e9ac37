"""Makes what a host hands out between two states of a disk, and judges what Cairn says of them.

Written from the facts in docs/sources.md, not from Cairn's code. OLD and NEW are raw images; what lies past the end of the
smaller one counts as zeros.

usage: differencing.py whole   OLD NEW > delta.vhd     as XAPI exports: each changed block whole, all bits set
       differencing.py sectors OLD NEW > delta.vhd     as tapdisk keeps it: changed pages only, garbage where no bit is set
       differencing.py changed OLD NEW > list          as `xe vdi-list-changed-blocks` prints it
       differencing.py covers  OLD NEW < diff.json     whether `cairn diff --json` lists every page that differs
"""

import base64
import hashlib
import json
import os
import random
import struct
import sys

SECTOR = 512
PAGE = 4 << 10
EXTENT = 64 << 10
BLOCK = 2 << 20
ABSENT = 0xFFFFFFFF


class Image:
    """A raw image, as long as it is asked for."""

    def __init__(self, path):
        self.path, self.file = path, open(path, "rb", buffering=0)
        self.size = os.fstat(self.file.fileno()).st_size

    def block(self, number):
        """The content of a block, BLOCK bytes."""
        return os.pread(self.file.fileno(), BLOCK, number * BLOCK).ljust(BLOCK, b"\0")

    def id(self):
        """Sixteen bytes that are the same for the same image: deltas of tapdisk's name their parent."""
        return hashlib.md5(os.path.realpath(self.path).encode()).digest()


def differing_blocks(old, new):
    """Yields number, old content and new content of each block that differs."""
    for number in range(-(-max(old.size, new.size) // BLOCK)):
        before, after = old.block(number), new.block(number)
        if before != after:
            yield number, before, after


def differing(before, after, unit):
    """The offsets of the units of a block that differ."""
    before, after = memoryview(before), memoryview(after)
    return [at for at in range(0, BLOCK, unit) if before[at:at + unit] != after[at:at + unit]]


def checksum(record):
    return ~sum(record) & 0xFFFFFFFF


def padded(data, unit=SECTOR, filler=b"\0"):
    return data.ljust(-(-len(data) // unit) * unit, filler)


def footer(size, unique_id, creator):
    # Cylinders, heads and sectors are decoration: the largest that can be said.
    geometry = struct.pack(">HBB", 65535, 16, 255)
    fields = struct.pack(">8sIIQI12sQQ4sI", b"conectix", 2, 0x00010000, 512, 0, creator, size, size, geometry, 4)
    record = bytearray((fields + bytes(4) + unique_id).ljust(512, b"\0"))
    struct.pack_into(">I", record, 64, checksum(record))
    return bytes(record)


def header(table_at, entries, parent_id):
    fields = struct.pack(">8sQQIII", b"cxsparse", 2**64 - 1, table_at, 0x00010000, entries, BLOCK)
    record = bytearray((fields + bytes(4) + parent_id).ljust(1024, b"\0"))
    struct.pack_into(">I", record, 36, checksum(record))
    return bytes(record)


def whole(old, new, out):
    assert new.size % SECTOR == 0, "a VHD has whole sectors"
    numbers = [number for number, _, _ in differing_blocks(old, new) if number * BLOCK < new.size]
    # A new id for each export, and a parent's that names no export.
    ids = random.Random(new.path)
    end = footer(new.size, ids.randbytes(16), b"caml\0\0\0\1\0\0\0\0")
    table = [ABSENT] * -(-new.size // BLOCK)
    first = 2048 + -(-4 * len(table) // SECTOR) * SECTOR
    for place, number in enumerate(numbers):
        table[number] = (first + place * (SECTOR + BLOCK)) // SECTOR
    head = (end + header(2048, len(table), ids.randbytes(16))).ljust(2048, b"\0")
    out.write(head + padded(struct.pack(f">{len(table)}I", *table), filler=b"\xff"))
    for number in numbers:
        out.write(b"\xff" * SECTOR)
        out.write(new.block(number))
    out.write(end)


def sectors(old, new, out):
    assert new.size % SECTOR == 0, "a VHD has whole sectors"
    pages = {
        number: differing(before, after, PAGE)
        for number, before, after in differing_blocks(old, new)
        if number * BLOCK < new.size
    }
    # Blocks stand in the order in which they were first written, which is any.
    dice = random.Random(4)
    order = list(pages)
    dice.shuffle(order)
    end = footer(new.size, new.id(), b"tap\0\0\1\0\3\0\0\0\0")
    table = [ABSENT] * -(-new.size // BLOCK)
    batmap_at = 1536 + -(-4 * len(table) // SECTOR) * SECTOR
    batmap = bytearray(-(-len(table) // (8 * SECTOR)) * SECTOR)
    for number, at in pages.items():
        if len(at) * PAGE == BLOCK:
            batmap[number // 8] |= 0x80 >> number % 8
    map_header = struct.pack(
        ">8sQIII", b"tdbatmap", batmap_at + SECTOR, len(batmap) // SECTOR, 0x00010002, checksum(batmap)
    )
    # Each block's data begins on a page, so its bitmap is the last sector of the page before.
    position = batmap_at + SECTOR + len(batmap)
    gaps = {}
    for number in order:
        gaps[number] = -(position + SECTOR) % PAGE
        table[number] = (position + gaps[number]) // SECTOR
        position += gaps[number] + SECTOR + BLOCK
    out.write(end + header(1536, len(table), old.id()))
    # libvhd pads its table with zeros.
    out.write(padded(struct.pack(f">{len(table)}I", *table)) + padded(map_header) + batmap)
    garbage = dice.randbytes(BLOCK)
    for number in order:
        bitmap, data, content = bytearray(SECTOR), bytearray(garbage), new.block(number)
        for at in pages[number]:
            bitmap[at // SECTOR // 8] = 0xFF
            data[at:at + PAGE] = content[at:at + PAGE]
        out.write(bytes(gaps[number]) + bitmap + data)
    out.write(end)


def changed(old, new, out):
    bitmap = bytearray(-(-(-(-new.size // EXTENT)) // 8))
    for number, before, after in differing_blocks(old, new):
        for at in differing(before, after, EXTENT):
            extent = (number * BLOCK + at) // EXTENT
            if extent * EXTENT < new.size:
                bitmap[extent // 8] |= 0x80 >> extent % 8
    out.write(base64.b64encode(bitmap) + b"\n")


def covers(old, new, out):
    (disk,) = json.load(sys.stdin)["disks"]
    ranges = [tuple(pair) for pair in disk["ranges"]]
    assert all(start < end for start, end in ranges) and ranges == sorted(ranges), "ranges are not in order"
    assert all(one[1] <= other[0] for one, other in zip(ranges, ranges[1:])), "ranges overlap"
    listed = sum(end - start for start, end in ranges)
    assert disk["gap_bytes"] or listed == disk["changed_bytes"], "changed_bytes is not the sum of the ranges"
    pages, missing, left = 0, [], iter(ranges)
    start, end = next(left, (2**63, 2**63))
    for number, before, after in differing_blocks(old, new):
        for at in differing(before, after, PAGE):
            page = number * BLOCK + at
            pages += 1
            while end <= page:
                start, end = next(left, (2**63, 2**63))
            # The last page of a disk may be short.
            if not start <= page or not min(page + PAGE, max(old.size, new.size)) <= end:
                missing.append(page)
    assert not missing, f"{len(missing)} pages that differ are not listed, the first at byte {missing[0]}"
    out.write(f"{pages * PAGE / 2**20:.1f} MiB differ, {listed / 2**20:.1f} MiB listed".encode())


def main():
    verbs = {"whole": whole, "sectors": sectors, "changed": changed, "covers": covers}
    if len(sys.argv) != 4 or sys.argv[1] not in verbs:
        sys.exit(__doc__)
    verbs[sys.argv[1]](Image(sys.argv[2]), Image(sys.argv[3]), sys.stdout.buffer)


main()
