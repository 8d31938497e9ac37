#!/usr/bin/env python3
"""Reads a qcow2 or VHDX by the package dissect.hypervisor and writes its disk as a sparse raw image.

    python read_image.py qcow2|vhdx IMAGE OUT.raw
"""

import sys
from pathlib import Path

from dissect.hypervisor.disk.qcow2 import QCow2
from dissect.hypervisor.disk.vhdx import VHDX

STEP = 2 * 1024 * 1024
ZEROS = bytes(STEP)


def main():
    kind, image, target = sys.argv[1:]
    if kind == "qcow2":
        opened = QCow2(Path(image))
        disk, size = opened.open(), opened.size
    else:
        disk = VHDX(Path(image))
        size = disk.size
    with open(target, "xb") as out:
        out.truncate(size)
        for offset in range(0, size, STEP):
            content = disk.read(min(STEP, size - offset))
            if content != ZEROS[:size - offset]:
                out.seek(offset)
                out.write(content)
    print(f"{size} bytes")


if __name__ == "__main__":
    main()
