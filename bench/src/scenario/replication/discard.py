"""Receives WAL over libpq and throws it away: discard.py CONNINFO START END. It demands that nothing is missing
between START and END, sends a status update for every 2 MiB, and prints bytes and seconds."""

import ctypes
import struct
import sys
import time

COPY_BOTH = 8
conninfo, start, end = sys.argv[1], sys.argv[2], sys.argv[3]


def number(lsn):
    high, low = lsn.split("/")
    return int(high, 16) << 32 | int(low, 16)


libpq = ctypes.CDLL("libpq.so.5")
for name in ("PQconnectdb", "PQexec"):
    getattr(libpq, name).restype = ctypes.c_void_p
libpq.PQerrorMessage.restype = ctypes.c_char_p
connection = ctypes.c_void_p(libpq.PQconnectdb((conninfo + " replication=true dbname=replication").encode()))


def fail(what):
    sys.exit(f"{what}: {libpq.PQerrorMessage(connection).decode()}")


if libpq.PQstatus(connection) != 0:
    fail("connecting")
result = libpq.PQexec(connection, f"START_REPLICATION PHYSICAL {start}".encode())
if libpq.PQresultStatus(ctypes.c_void_p(result)) != COPY_BOTH:
    fail("START_REPLICATION")

position, goal, told = number(start), number(end), number(start)
message = ctypes.c_void_p()
begun = time.monotonic()
while position < goal:
    length = libpq.PQgetCopyData(connection, ctypes.byref(message), 0)
    if length < 0:
        fail("the stream ended")
    head = ctypes.string_at(message, min(length, 25))
    if head[:1] == b"w":
        (at,) = struct.unpack_from(">Q", head, 1)
        if at != position:
            sys.exit(f"WAL is missing: {at:X} after {position:X}")
        position += length - 25
    libpq.PQfreemem(message)
    if position - told >= 2 << 20:
        told = position
        status = struct.pack(">cQQQqB", b"r", position, position, position, 0, 0)
        if libpq.PQputCopyData(connection, status, len(status)) != 1 or libpq.PQflush(connection) != 0:
            fail("sending a status update")
print(position - number(start), time.monotonic() - begun)
libpq.PQfinish(connection)
