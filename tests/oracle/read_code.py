#!/usr/bin/env python3
"""Print the text of the one QR code on a picture, as a scanner reads it: read_code.py IMAGE"""
import sys

import zxingcpp
from PIL import Image

codes = zxingcpp.read_barcodes(Image.open(sys.argv[1]).convert("L"), formats=zxingcpp.BarcodeFormat.QRCode)
if len(codes) != 1:
    sys.exit(f"read_code.py: {len(codes)} codes found")
print(codes[0].text)
