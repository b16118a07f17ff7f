"""Passenger's format in another language, written from its description alone, for the tests in passenger.rs.

    passenger_peer.py server PATH PASSWORD_IN_HEX    serves one connection after the other until stdin ends
    passenger_peer.py client PATH PASSWORD_IN_HEX    calls the server of the tests in abstract_server.rs
    passenger_peer.py channel                        converses over the socket that is its stdin
"""

import array
import os
import select
import socket
import struct
import sys


class Channel:
    def __init__(self, connection):
        self.connection = connection

    def receive(self, count):
        """Exactly so many bytes, or None at the end of the stream."""
        data = b""
        while len(data) < count:
            try:
                part = self.connection.recv(count - len(data))
            except ConnectionResetError:
                part = b""
            if not part:
                return None
            data += part
        return data

    def read(self):
        head = self.receive(2)
        if head is None:
            return None
        body = self.receive(struct.unpack(">H", head)[0])
        if body is None:
            return None
        return body.split(b"\0")[:-1]

    def write(self, *elements):
        body = b"".join(element + b"\0" for element in elements)
        self.connection.sendall(struct.pack(">H", len(body)) + body)

    def read_scalar(self, limit=1 << 24):
        head = self.receive(4)
        if head is None:
            return None
        size = struct.unpack(">I", head)[0]
        assert size <= limit, size
        return self.receive(size)

    def write_scalar(self, data):
        self.connection.sendall(struct.pack(">I", len(data)) + data)

    def send_io(self, number):
        assert self.read() == [b"pass IO"]
        rights = array.array("i", [number]).tobytes()
        sent = self.connection.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        assert sent == 1
        assert self.read() == [b"got IO"]

    def recv_io(self):
        self.write(b"pass IO")
        data, control, flags, _ = self.connection.recvmsg(1, socket.CMSG_SPACE(4))
        assert data == b"\0" and flags & socket.MSG_CTRUNC == 0, (data, flags)
        [(level, kind, rights)] = control
        assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        [number] = array.array("i", rights)
        self.write(b"got IO")
        return number


def handle(channel, name, args):
    if name == b"echo":
        channel.write(*args)
    elif name == b"count":
        channel.write(str(len(args)).encode(), str(sum(map(len, args))).encode())
    elif name == b"send_file":
        with open(args[0], "rb") as file:
            channel.write(b"ok", str(os.fstat(file.fileno()).st_size).encode())
            channel.send_io(file.fileno())
    elif name == b"scalar":
        channel.write_scalar(channel.read_scalar())
    elif name == b"read_file":
        with os.fdopen(channel.recv_io(), "rb") as file:
            channel.write_scalar(file.read())
    elif name == b"byte_by_byte":
        for byte in b"\0\x04a\0b\0":
            channel.connection.sendall(bytes([byte]))
    elif name == b"mixed":
        mixed(channel)
    # Others are answered by nothing, and the connection is closed.


def mixed(channel):
    """An array, a scalar, a descriptor and a scalar come; a scalar, an array and a descriptor go."""
    elements, first = channel.read(), channel.read_scalar()
    with os.fdopen(channel.recv_io(), "wb") as file:
        second = channel.read_scalar()
        channel.write_scalar(first + second)
        channel.write(*reversed(elements))
        file.write(b"it works")
    reader, writer = os.pipe()
    channel.send_io(reader)
    os.close(reader)
    os.write(writer, b"so does this")
    os.close(writer)


def serve(path, password):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(10)
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if listener not in ready:
            break
        connection, _ = listener.accept()
        with connection:
            channel = Channel(connection)
            if channel.read_scalar() == password:
                request = channel.read()
                if request:
                    handle(channel, request[0], request[1:])
    os.unlink(path)


def converse():
    channel = Channel(socket.socket(fileno=os.dup(0)))
    channel.write(b"hello", b"my beautiful", b"", b"world")
    channel.write(b"\xff\xfe")
    assert channel.read() == [b"you sent", b"", b"four elements"]
    assert channel.read() == [b""]
    channel.write_scalar(b"")
    channel.write_scalar(bytes(range(256)))
    assert channel.read_scalar() == b""
    assert channel.read_scalar() == b"\0\xff" * 50000
    mixed(channel)
    assert channel.read() is None


def call(path, password, *request):
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(10)
    connection.connect(path)
    channel = Channel(connection)
    try:
        channel.write_scalar(password)
        channel.write(*request)
    except BrokenPipeError:
        pass  # The server closes as soon as it has seen a wrong password.
    return channel


def call_all(path, password):
    assert call(path, password, b"hello", b"Joe", b"Dalton").read() == [b"Hello Joe Dalton"]
    assert call(path, password, b"nothing").read() is None
    assert call(path, b"wrong" * 5, b"hello", b"Joe", b"Dalton").read() is None
    channel = call(path, password, b"converse", b"\xff", b"")
    assert channel.read() == [b"\xff", b""]
    mixed(channel)
    assert channel.read() is None
    print("done")


if sys.argv[1] == "client":
    call_all(sys.argv[2], bytes.fromhex(sys.argv[3]))
elif sys.argv[1] == "server":
    serve(sys.argv[2], bytes.fromhex(sys.argv[3]))
else:
    converse()
