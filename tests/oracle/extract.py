#!/usr/bin/env python3
"""Read a Cairn backup repository without Cairn.

    pip install -r requirements.txt
    extract.py REPO list
    extract.py REPO extract SNAPSHOT VDI -o OUT.raw
    extract.py REPO verify

SNAPSHOT is an id, the first digits of one, or `latest`: the newest snapshot that holds the VDI. OUT.raw becomes a
sparse raw image of the disk. The passphrase comes from the file given with --passphrase-file (without its last line
end), from CAIRN_PASSPHRASE, or is asked for; --key-file gives a private key instead. A repository without encryption
needs neither.

This program was written from docs/format.md alone and shares no code with Cairn; § in the comments is a section of
that page. It reads `config`, `keys/`, `packs/` and `snapshots/`, writes to none of them, and believes nothing it has
not checked: the hash that names an object, the tag of all that is sealed, the id of every chunk and manifest node.
What is damaged is named and refused. `extract --keep-going` still writes all that can be proven to be right, leaves
zeros for the rest, and says where.

Exit status: 0 all is well, 1 it cannot be done (no such snapshot, wrong passphrase ...), 2 wrong usage, 3 something
is damaged or not in this format.
"""
import argparse, datetime, functools, getpass, hashlib, hmac, json, os, re, struct, sys
from pathlib import Path

try:
    import zstandard
    from argon2.exceptions import HashingError
    from argon2.low_level import Type, hash_secret_raw
    from blake3 import blake3
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
except ImportError as missing:
    sys.exit(f"extract.py: {missing}; try: pip install -r requirements.txt")

PAGE, BLOCK = 4096, 2 << 20                     # §6
NONE, AES_256_GCM = 0, 1                        # §3, suites
DATA, META = 1, 2                               # §7, content of a pack
ZERO_NONCE, NO_NODE = bytes(12), bytes(32)      # §5, §7, §9; §8
ENCAPSULATION = 1120                            # §3
GRANTS = {0: {0}, 1: {1, 2, 3}, 2: {1, 2, 4}, 3: {2}}   # §5, which keys a bundle holds


class Problem(Exception):
    """It cannot be done, and nothing in the repository is to blame."""


class Damage(Exception):
    """Something is not as format.md says; the text begins with its name."""


def derive(context, material):
    return blake3(material, derive_key_context=context).digest()


def keyed(key, data):
    return blake3(data, key=key).digest()


def unseal(suite, key, nonce, ad, sealed, name):
    """§3: check the tag, give the plaintext."""
    body, tag = sealed[:-16], sealed[-16:]
    if suite == AES_256_GCM and len(tag) == 16:
        try:
            return AESGCM(key).decrypt(nonce, sealed, ad)
        except InvalidTag:
            pass
    elif suite == NONE and keyed(key, nonce + struct.pack("<Q", len(ad)) + ad + body)[:16] == tag:
        return body
    raise Damage(f"{name}: its tag does not fit")


def x25519(private, public):
    """RFC 7748, also where the result is zeros, which the library refuses."""
    p, a24 = 2**255 - 19, 121665
    k = bytearray(private)
    k[0], k[31] = k[0] & 248, k[31] & 127 | 64
    k, u = int.from_bytes(k, "little"), int.from_bytes(public, "little") % 2**255 % p
    x2, z2, x3, z3, swap = 1, 0, u, 1, 0
    for t in reversed(range(255)):
        bit = k >> t & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        da, cb, aa, bb = d * a % p, c * b % p, a * a % p, b * b % p
        x3, z3, x2 = (da + cb) ** 2 % p, u * (da - cb) ** 2 % p, aa * bb % p
        z2 = (aa - bb) * (aa + a24 * (aa - bb)) % p
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, p - 2, p) % p).to_bytes(32, "little")


@functools.lru_cache(maxsize=8)
def key_pair(private):
    """draft-connolly-cfrg-xwing-kem: what a decapsulation key expands to: ML-KEM key, X25519 key, X25519 public key."""
    expanded = hashlib.shake_256(private).digest(96)
    curve = X25519PrivateKey.from_private_bytes(expanded[64:]).public_key().public_bytes_raw()
    return MLKEM768PrivateKey.from_seed_bytes(expanded[:64]), expanded[64:], curve


def public_key(private):
    lattice, _, curve = key_pair(private)
    return lattice.public_key().public_bytes_raw() + curve


def agreed(private, encapsulation, info):
    """§3: X-Wing, then the key schedule of RFC 9180, 5.1, and its export, 5.3."""
    lattice, curve_private, curve_public = key_pair(private)
    of_lattice, of_curve = encapsulation[:1088], encapsulation[1088:]
    shared = hashlib.sha3_256(lattice.decapsulate(of_lattice) + x25519(curve_private, of_curve) + of_curve
                              + curve_public + rb"\.//^" + b"\\").digest()
    suite = b"HPKE-v1" + b"HPKE" + struct.pack(">HHH", 0x647A, 0x0001, 0xFFFF)

    def extract(salt, label, material):
        return hmac.digest(salt, suite + label + material, "sha256")

    def expand(key, label, context):                    # 32 bytes are one block of HKDF
        return hmac.digest(key, struct.pack(">H", 32) + suite + label + context + b"\x01", "sha256")

    context = b"\0" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", info)
    secret = extract(shared, b"secret", b"")
    return expand(expand(secret, b"exp", context), b"sec", b"cairn v1 key")


def private_key(text):
    """§5, keys as text: four rows of 8 bytes and 2 of a checksum."""
    lines = [line for line in text.upper().splitlines() if not line.lstrip().startswith("#")]
    typed = "".join(lines).partition("CAIRN-PRIVATE-1")[2] if "CAIRN-PRIVATE-1" in text.upper() else "".join(lines)
    typed = re.sub(r"[\s:-]", "", typed).translate(str.maketrans("OIL", "011"))[:64]
    if not re.fullmatch("[0-9A-HJKMNP-TV-Z]{64}", typed):
        raise Problem("the key file holds no private key")
    key = b""
    for row in range(4):
        number = 0
        for char in typed[16 * row:16 * row + 16]:
            number = number << 5 | "0123456789ABCDEFGHJKMNPQRSTVWXYZ".index(char)
        data = number.to_bytes(10, "big")
        if derive("cairn v1 private key text", struct.pack("<H", row) + data[:8])[:2] != data[8:]:
            raise Problem(f"row {row + 1} of the private key is mistyped")
        key += data[:8]
    return key


def cbor_map(data, name):
    """The one CBOR map that `data` is (RFC 8949, definite lengths). Floats and the like, used by no field, are None."""
    at = 0

    def take(n):
        nonlocal at
        at += n
        if at > len(data):
            raise Damage(f"{name}: a CBOR item runs past its end")
        return data[at - n:at]

    def item(depth=0):
        major, n = divmod(take(1)[0], 32)
        if n > 27 or depth > 16:
            raise Damage(f"{name}: CBOR that is indefinite, reserved or nested too deep")
        simple = {20: False, 21: True}.get(n) if major == 7 else None
        if n > 23:
            n = int.from_bytes(take(1 << (n - 24)), "big")
        if major < 2:
            return n if major == 0 else -1 - n
        if major < 4:
            return take(n) if major == 2 else take(n).decode(errors="replace")
        if major == 4:
            return [item(depth + 1) for _ in range(n)]  # each item takes a byte, so a false n soon meets the end
        if major == 5:
            pairs = [(item(depth + 1), item(depth + 1)) for _ in range(n)]
            if not all(type(key) in (int, str) for key, _ in pairs) or len(dict(pairs)) != n:
                raise Damage(f"{name}: a CBOR map with a strange or repeated key")
            return dict(pairs)
        return item(depth + 1) if major == 6 else simple

    value = item()
    if not isinstance(value, dict) or at != len(data):
        raise Damage(f"{name}: not one CBOR map")
    return value


def field(cbor, key, kind, name, low=0, high=float("inf")):
    """A field that must be there; low and high bound a number's value, the length of anything else."""
    value = cbor.get(key)
    if type(value) is not kind or not low <= (value if kind is int else len(value)) <= high:
        raise Damage(f"{name}: field {key} is missing, of the wrong type or out of range")
    return value


def check_header(data, kind, name):
    """§2: the 16 bytes all objects begin with."""
    if len(data) < 16 or data[:6] != b"CAIRN" + kind:
        raise Damage(f"{name}: does not begin like an object of its kind")
    version, features = struct.unpack_from("<HQ", data, 6)
    if version != 2 or features != 0:
        raise Damage(f"{name}: says format version {version}, features {features:#x}; this program reads version 2")


class Pack:
    """§7. Opening a pack reads and checks its directory; frames are opened one by one."""

    def __init__(self, repo, path, name):
        self.repo, self.path, self.name = repo, path, name
        size = path.stat().st_size
        if size < 64 + 32:
            raise Damage(f"{self.name}: too short for a pack")
        self.header, trailer = self.read(0, 64), self.read(size - 32, 32)
        check_header(self.header, b"p", self.name)
        self.content, frame_key, extra = struct.unpack_from("<BBH", self.header, 16)
        encapsulated = self.content == DATA and repo.suite == AES_256_GCM
        if self.content not in (DATA, META) or (frame_key, extra) != ((1, ENCAPSULATION) if encapsulated else (0, 0)) \
                or any(self.header[20:32]) or size < 64 + extra + 32:
            raise Damage(f"{self.name}: its content or its frame key is unknown to this program")
        encapsulation = self.read(64, extra)
        start, length, frames, total = struct.unpack_from("<QIIQ", trailer)
        if trailer[24:] != b"CAIRNEND" or total != size or start + length != size - 32:
            raise Damage(f"{self.name}: its trailer is wrong (cut off?)")
        salt, role = self.header[32:], "data" if self.content == DATA else "structure"
        if encapsulated:
            info = b"cairn v1 frame key" + repo.id + self.header
            self.frame_key = agreed(repo.key(role), encapsulation, info)
        else:
            self.frame_key = derive("cairn v1 frame key", repo.key(role) + salt)
        self.directory = unseal(repo.suite, derive("cairn v1 directory key", repo.key("structure") + salt), ZERO_NONCE,
                                repo.id + self.header + encapsulation + trailer, self.read(start, length), f"{self.name}, directory")
        # Only now, with the tag checked, is the directory looked at.
        if self.directory[:4] != trailer[12:16] or len(self.directory) < 8 + 16 * frames:
            raise Damage(f"{self.name}: directory and trailer disagree")
        self.frames, offset, entry = [], 64 + extra, 8 + 16 * frames  # offset, sealed length, length, codec, entries from, to
        for n in range(frames):
            sealed, plain, count, codec = struct.unpack_from("<IIIB", self.directory, 8 + 16 * n)
            self.frames.append((offset, sealed, plain, codec, entry, entry + 36 * count))
            offset, entry = offset + sealed, entry + 36 * count
            if entry > len(self.directory) or sum(e[1] for e in self.entries(n)) != plain or plain > 32 << 20 \
                    or any(self.directory[8 + 16 * n + 13:8 + 16 * n + 16]):
                raise Damage(f"{self.name}: its directory is wrong about frame {n}")
        entries = struct.unpack_from("<I", self.directory, 4)[0]
        rest = self.directory[entry:]  # zeros, up to a multiple of 4096
        if offset != start or len(rest) > 4095 or any(rest) or entries * 36 != entry - 8 - 16 * frames:
            raise Damage(f"{self.name}: its frames do not fill it, or its entries the directory")

    def read(self, offset, length):
        try:
            with open(self.path, "rb") as f:
                f.seek(offset)
                return f.read(length)
        except OSError as e:
            raise Damage(f"{self.name}: {e}") from None

    def entries(self, n):
        return struct.iter_unpack("<32sI", self.directory[self.frames[n][4]:self.frames[n][5]])

    def open_frame(self, n):
        """The entries of frame n as {id: bytes}, each checked against its id."""
        name, (offset, sealed, plain, codec, *_) = f"{self.name}, frame {n}", self.frames[n]
        ad = self.repo.id + self.header + struct.pack("<IBII", n, codec, plain, sealed)
        data = unseal(self.repo.suite, self.frame_key, struct.pack("<I8x", n), ad, self.read(offset, sealed), name)
        if codec == 1:
            try:
                if zstandard.get_frame_parameters(data).content_size not in (plain, zstandard.CONTENTSIZE_UNKNOWN):
                    raise Damage(f"{name}: its compressed length is not the directory's")
                data = zstandard.ZstdDecompressor().decompress(data, max_output_size=plain, allow_extra_data=False)
            except zstandard.ZstdError as e:
                raise Damage(f"{name}: {e}") from None
        elif codec != 0:
            raise Damage(f"{name}: codec {codec} is unknown to this program")
        if len(data) != plain:
            raise Damage(f"{name}: its length is not the directory's")
        result, at = {}, 0
        for id, length in self.entries(n):
            result[id] = data[at:at + length]
            at += length
            if keyed(self.repo.id_keys[self.content], result[id]) != id:
                raise Damage(f"{name}: the content of {id.hex()} has another id")
        return result


class Repository:
    def __init__(self, path, passphrase, private, keep_going=False):
        self.path, self.passphrase, self.keep_going = Path(path), passphrase, keep_going
        self.private = private                          # a private key, or None
        self.damage = {}                                # damage met that did not stop us, as text
        self.roles, self.packs, self.where = {}, [], {}

    def found(self, damage):
        if str(damage) not in self.damage:
            self.damage[str(damage)] = True
            print(f"extract.py: refused: {damage}", file=sys.stderr)

    def objects(self, pattern):
        """§1: all objects of one kind; other names are left out."""
        return [path for path in sorted(self.path.glob(pattern)) if re.fullmatch("[0-9a-f]{64}", path.name)
                and path.parent.name in ("keys", "snapshots", path.name[:2])]

    @functools.cache
    def is_whole(self, path):
        """§1: an object's name is the BLAKE3 of its bytes. This needs no key, but reads all of them."""
        with open(path, "rb") as f:
            return hashlib.file_digest(f, blake3).hexdigest() == path.name

    def check_name(self, path, name):
        if not self.is_whole(path):
            raise Damage(f"{name}: its content is not what its name says (BLAKE3)")

    def opened(self, pattern, opener):
        """All objects of a kind that can be opened; the rest is noted."""
        for path in self.objects(pattern):
            name = path.relative_to(self.path).as_posix()
            try:
                yield opener(path, name)
            except (Damage, OSError) as e:
                self.found(e)

    def open(self):
        """§4 and §5: the configuration, then the keys, then the configuration's authentication."""
        if not (self.path / "config").is_file():
            raise Damage(f"config: is missing (is {self.path} a repository?)")
        data = (self.path / "config").read_bytes()
        if len(data) < 16 + 4 + 64 or blake3(data[:-64]).digest() != data[-64:-32]:
            raise Damage("config: its checksum does not fit")
        check_header(data, b"c", "config")
        if int.from_bytes(data[16:20], "little") != len(data) - 16 - 4 - 64:
            raise Damage("config: the length of its body is wrong")
        body = cbor_map(data[20:-64], "config")
        self.id, self.suite = field(body, 0, bytes, "config", 16, 16), field(body, 2, int, "config")
        if self.suite not in (NONE, AES_256_GCM):
            raise Damage(f"config: suite {self.suite} is unknown to this program")
        refused = [reason for reason in self.opened("keys/*", self.open_slot) if reason]
        if not self.roles and refused:
            raise Problem("no key slot could be opened: " + "; ".join(refused))
        if not self.roles:
            raise Damage("keys/: no key slot is left, and without the keys nothing can be read")
        if keyed(derive("cairn v1 configuration", self.key("structure")), data[:-32]) != data[-32:]:
            raise Damage("config: its authentication does not fit: no holder of the keys wrote it")

    def open_slot(self, path, name):
        """§5: put the keys that a slot grants into self.roles, or give the reason why not."""
        self.check_name(path, name)
        data = path.read_bytes()
        check_header(data, b"k", name)
        if len(self.roles) == 3:
            return None                                 # another slot gave all keys
        end = 20 + int.from_bytes(data[16:20], "little")
        parameters = cbor_map(data[20:end], name)
        kind, salt = field(parameters, 0, int, name), field(parameters, 3, bytes, name, 32, 32)
        ad, grant = data[:end] + self.id, field(parameters, 5, int, name)
        if grant not in GRANTS:
            return f"{name} grants {grant}, which is unknown to this program"
        if (kind == 0) != (self.suite == NONE):
            return f"{name} is of kind {kind}, which does not belong here"
        if kind == 0:
            bundle = unseal(NONE, derive("cairn v1 open key slot", salt), ZERO_NONCE, ad, data[end:], name)
        elif kind == 1 and self.private:
            return f"{name} wants a passphrase"
        elif kind == 1:
            memory, passes, lanes = costs = field(parameters, 4, list, name, 3, 3)
            if not all(type(n) is int and 1 <= n <= most for n, most in zip(costs, (1 << 20, 100, 255))):
                raise Damage(f"{name}: its Argon2 costs are out of range")
            key = hash_secret_raw(self.passphrase(), salt, passes, memory, lanes, 32, Type.ID, 0x13)
            try:
                bundle = unseal(AES_256_GCM, key, ZERO_NONCE, ad, data[end:], name)
            except Damage:                              # its name was right, so the slot is whole
                return f"the passphrase does not open {name[:17]}"
        elif kind == 2 and not self.private:
            return f"{name[:17]} wants a private key"
        elif kind == 2:
            own = derive("cairn v1 recipient id", public_key(self.private))[:16]
            if field(parameters, 6, bytes, name, 16, 16) != own:
                return f"{name[:17]} is for another private key"
            key = agreed(self.private, field(parameters, 7, bytes, name, ENCAPSULATION, ENCAPSULATION),
                         b"cairn v1 recipient key slot" + self.id + salt)
            bundle = unseal(AES_256_GCM, key, ZERO_NONCE, ad, data[end:], name)
        else:
            return f"{name} is of kind {kind}, unknown to this program"
        bundle = cbor_map(bundle, name)
        if set(bundle) != GRANTS[grant]:
            raise Damage(f"{name}: its bundle does not hold what it grants")
        for number, role in enumerate(("identity", "structure", "data"), 1):
            if 0 in bundle:
                self.roles[role] = derive(f"cairn v1 role {role}", field(bundle, 0, bytes, name, 32, 32))
            elif number in bundle:
                self.roles[role] = field(bundle, number, bytes, name, 32, 32)

    def key(self, role):
        if role not in self.roles:
            raise Problem(f"the key slots that could be opened do not hold the {role} key")
        return self.roles[role]

    def load_packs(self):
        """§12, 3: read all directories. A place is the number pack << 64 | frame << 32 | length, to save memory."""
        self.id_keys = {DATA: derive("cairn v1 chunk id", self.key("identity")),                  # §6
                        META: derive("cairn v1 manifest node id", self.key("structure"))}         # §8
        for pack in self.opened("packs/*/*", lambda path, name: Pack(self, path, name)):
            for n in range(len(pack.frames)):
                for id, length in pack.entries(n):      # §7: one id may stand in several places
                    self.where[id] = self.where.get(id, ()) + (len(self.packs) << 64 | n << 32 | length,)
            self.packs.append(pack)

    @functools.lru_cache(maxsize=64)
    def frame(self, number):
        pack = self.packs[number >> 32]
        try:
            self.check_name(pack.path, pack.name)       # left until now, as it reads the whole pack
        except (Damage, OSError) as e:
            if not self.keep_going:
                raise
            self.found(e)                               # yet a frame whose own tag and ids fit is right
        return pack.open_frame(number & 0xFFFFFFFF)

    def get(self, id, what):
        damage = Damage(f"{what} {id.hex()}: is in no pack that can be read")
        for place in self.where.get(id, ()):
            try:
                return self.frame(place >> 32)[id]
            except Damage as e:
                damage = e
        raise damage

    def snapshots(self):
        """All records that can be read, oldest first."""
        return sorted(self.opened("snapshots/*", self.open_snapshot),
                      key=lambda s: (s["time"], s["committed"], s["id"]))

    def open_snapshot(self, path, name):
        """§9."""
        self.check_name(path, name)
        data, inf = path.read_bytes(), float("inf")
        check_header(data, b"s", name)
        if int.from_bytes(data[48:52], "little") != len(data) - 52:
            raise Damage(f"{name}: the length of what is sealed in it is wrong")
        key = derive("cairn v1 snapshot key", self.key("structure") + data[16:48])
        record = cbor_map(unseal(self.suite, key, ZERO_NONCE, self.id + data[:52], data[52:], name), name)
        result = {"id": path.name, "time": field(record, 0, int, name, -inf),
                  "committed": field(record, 1, int, name, -inf), "vm": None, "disks": [], "record": plain(record)}
        if 2 in record:
            result["vm"] = field(record, 2, str, name)
        for disk in field(record, 3, list, name):
            if not isinstance(disk, dict):
                raise Damage(f"{name}: a disk is not a map")
            result["disks"].append({
                "vdi": field(disk, 0, str, name), "size": field(disk, 1, int, name, 0, (1 << 64) - 1),
                "root": field(disk, 2, bytes, name, 32, 32).hex(), "format": field(disk, 3, str, name),
                "allocated": field(disk, 4, int, name)})
        return result

    def runs(self, disk):
        """§8: walk a disk's manifest. Gives (first byte, end, chunk id) in ascending order, and where a part of
        the tree is lost, (first byte, end, Damage)."""
        root, height = bytes.fromhex(disk["root"]), 1
        while 128 ** height * BLOCK < disk["size"]:
            height += 1
        todo = [(root, height, 0)] if root != NO_NODE else []
        while todo:
            id, level, block = todo.pop()
            try:
                below = self.node(id, level, block, disk["size"])
            except Damage as e:
                yield block * BLOCK, min(disk["size"], (block + 128 ** level) * BLOCK), e
                continue
            if level:
                todo += reversed(below)
            else:
                yield from below

    def node(self, id, level, block, size):
        """A node's content: (node id, level, first block) of its children; in a leaf, runs as `runs` gives them."""
        node, name, width = self.get(id, "manifest node"), f"manifest node {id.hex()}", 32 if level else 36
        parts = [node[at:at + width] for at in range(4, len(node), width)]
        if node[:4] != struct.pack("<BBH", 2 if level else 1, level, len(parts)) or len(node) != 4 + width * len(parts):
            raise Damage(f"{name}: is no node of level {level}")
        if level:
            below = [(child, level - 1, block + i * 128 ** (level - 1)) for i, child in enumerate(parts)]
            if not 1 <= len(parts) <= 128 or parts[-1] == NO_NODE or below[-1][2] * BLOCK >= size:
                raise Damage(f"{name}: its children are too few or too many, or beyond the disk's end")
            return [child for child in below if child[0] != NO_NODE]
        runs, last = [], 0
        for first, pages, chunk in struct.iter_unpack("<HH32s", node[4:]):
            start = block * BLOCK + first * PAGE
            if first < last or pages == 0 or first + pages > 512 or start + (pages - 1) * PAGE >= size:
                raise Damage(f"{name}: its runs overlap or are beyond the block's or disk's end")
            runs.append((start, start + pages * PAGE, chunk))
            last = first + pages
        return runs


def when(milliseconds):
    try:
        time = datetime.datetime(1970, 1, 1) + datetime.timedelta(milliseconds=milliseconds)
    except OverflowError:
        return f"{milliseconds} ms"
    return time.isoformat(timespec="milliseconds") + "Z"


def plain(value):
    """A record as JSON can say it: bytes as hexadecimal digits, keys as text."""
    if isinstance(value, dict):
        return {str(key): plain(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value.hex() if isinstance(value, bytes) else value


def command_list(repo, args):
    snapshots = repo.snapshots()
    if args.json:
        print(json.dumps(snapshots, indent=1))
    for s in [] if args.json else snapshots:
        print(s["id"], when(s["time"]), "vm", s["vm"] and ascii(s["vm"]))
        for d in s["disks"]:
            print(f"    vdi {d['vdi']!a}: {d['size']} bytes, {d['allocated']} allocated, read from {d['format']!a}")
    return 3 if repo.damage else 0


def command_extract(repo, args):
    snapshots = repo.snapshots()
    if args.snapshot == "latest":
        if any(text.startswith("snapshots/") for text in repo.damage):
            raise Problem("a snapshot record is damaged, so it is not sure which is the latest; give an id")
        snapshots = [s for s in snapshots if args.vdi in (d["vdi"] for d in s["disks"])][-1:]
    else:
        snapshots = [s for s in snapshots if s["id"].startswith(args.snapshot.lower())]
    disks = [d for s in snapshots for d in s["disks"] if d["vdi"] == args.vdi]
    if len(snapshots) != 1 or len(disks) != 1:
        raise Problem(f"{args.snapshot} means {len(snapshots)} snapshots with {len(disks)} VDIs {args.vdi}; see `list`")
    disk, out, part = disks[0], Path(args.output), Path(args.output + ".part")
    if out.exists():
        raise Problem(f"{out} exists already")
    repo.load_packs()
    lost, allocated = [], 0
    try:
        with open(part, "wb") as f:
            f.truncate(disk["size"])                    # what is never written to stays a hole: zeros
            for start, end, chunk in repo.runs(disk):
                try:
                    if isinstance(chunk, Damage):
                        raise chunk
                    data = repo.get(chunk, "chunk")
                    if len(data) != end - start:
                        raise Damage(f"chunk {chunk.hex()}: is not as long as the manifest says")
                except Damage as e:
                    if not args.keep_going:
                        raise
                    repo.found(e)
                    lost.append((start, min(end, disk["size"])))
                    continue
                f.seek(start)
                f.write(data[:disk["size"] - start])    # §12, 4: cut at the virtual size
                allocated += len(data)
            f.flush()
            os.fsync(f.fileno())
        if not lost and allocated != disk["allocated"]:
            raise Damage(f"snapshots/{snapshots[0]['id']}: {disk['allocated']} bytes allocated, but found {allocated}")
        os.replace(part, out)
    except BaseException:
        part.unlink(missing_ok=True)                    # a part of a disk must not pass for a disk
        raise
    for start, end in lost:
        print(f"lost: bytes {start} to {end} of {out}, zeros were written")
    print(f"{out}: {disk['size']} bytes, {allocated} allocated, VDI {disk['vdi']!a} of {when(snapshots[0]['time'])}, "
          f"snapshot {snapshots[0]['id']}, {'INCOMPLETE' if lost else 'complete'}")
    return 3 if lost else 0


def command_verify(repo, args):
    """Reads everything. Snapshots that lose something by the damage are named as well."""
    repo.load_packs()
    bad, snapshots = set(), repo.snapshots()
    for number, pack in enumerate(repo.packs):
        for n in range(len(pack.frames)):
            try:
                repo.frame(number << 32 | n)
            except Damage as e:
                repo.found(e)
                bad.add(number << 32 | n)
    for s in snapshots:
        for disk in s["disks"]:
            allocated, lost, first = 0, 0, ""
            for start, end, chunk in repo.runs(disk):
                if not isinstance(chunk, Damage) and any(place & 0xFFFFFFFF == end - start and place >> 32 not in bad
                                                         for place in repo.where.get(chunk, ())):
                    allocated += end - start
                else:
                    lost += end - start
                    first = first or (chunk if isinstance(chunk, Damage) else f"chunk {chunk.hex()}")
            if lost or allocated != disk["allocated"]:
                repo.found(f"snapshots/{s['id']}, VDI {disk['vdi']!a}: {disk['allocated']} bytes are allocated, "
                           f"{allocated} are there" + (f"; the first loss: {first}" if lost else ""))
    print(f"{len(snapshots)} snapshots, {len(repo.packs)} packs, {len(repo.where)} chunks and manifest nodes: "
          + (f"{len(repo.damage)} things were refused" if repo.damage else "all is well"))
    return 3 if repo.damage else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repo", metavar="REPO", help="directory of the repository")
    parser.add_argument("--passphrase-file", metavar="FILE")
    parser.add_argument("--key-file", metavar="FILE", help="a private key, instead of a passphrase")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list snapshots, oldest first").add_argument("--json", action="store_true")
    extract = commands.add_parser("extract", help="write a disk as a raw image")
    extract.add_argument("snapshot", metavar="SNAPSHOT", help="id, first digits of one, or `latest`")
    extract.add_argument("vdi", metavar="VDI")
    extract.add_argument("-o", "--output", metavar="OUT.raw", required=True)
    extract.add_argument("--keep-going", action="store_true", help="write what can be proven, zeros for the rest")
    commands.add_parser("verify", help="read everything, report damage")
    args = parser.parse_args()

    @functools.cache
    def passphrase():
        if args.passphrase_file:
            return re.sub(rb"\r?\n\Z", b"", Path(args.passphrase_file).read_bytes())
        if "CAIRN_PASSPHRASE" in os.environ:
            return os.environb[b"CAIRN_PASSPHRASE"]
        if not sys.stdin.isatty():
            raise Problem("a passphrase is needed: set CAIRN_PASSPHRASE or give --passphrase-file")
        return getpass.getpass("Passphrase: ").encode()

    try:
        private = private_key(Path(args.key_file).read_text(errors="replace")) if args.key_file else None
    except (Problem, OSError) as e:
        sys.exit(f"extract.py: {e}")
    repo = Repository(args.repo, passphrase, private, args.command == "verify" or getattr(args, "keep_going", False))
    try:
        if args.command == "verify":                    # before anything needs a key
            for pattern in ("keys/*", "packs/*/*", "snapshots/*"):
                list(repo.opened(pattern, repo.check_name))
        repo.open()
        return {"list": command_list, "extract": command_extract, "verify": command_verify}[args.command](repo, args)
    except Damage as e:
        repo.found(e)
        return 3
    except (Problem, HashingError, OSError) as e:
        print(f"extract.py: {e}", file=sys.stderr)
        return 3 if repo.damage else 1


if __name__ == "__main__":
    sys.exit(main())
