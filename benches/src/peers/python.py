"""Python's multiprocessing, as its documentation has it: both sides, in processes of their own.

Fairness: connections are made with a password, which is the library's own advice; both challenges are its protocol.
Arguments are pickled, bytes as they are. The server has a thread for each connection, as managers have.
"""

import multiprocessing
import multiprocessing.connection
import multiprocessing.managers
import multiprocessing.reduction
import os
import signal
import sys
import threading
import time

KEY = b"a password that both sides know.."
NULL = os.open("/dev/null", os.O_RDONLY)


def hello(first, last):
    return f"{first} {last}"


def add(a, b):
    return a + b


def echo(data):
    return data


CALLS = {"hello": hello, "add": add, "echo": echo}


class Manager(multiprocessing.managers.BaseManager):
    pass


class Answers:
    hello = staticmethod(hello)
    add = staticmethod(add)
    echo = staticmethod(echo)


Manager.register("Answers", Answers)


def serve_connection(connection):
    try:
        while True:
            name, *arguments = connection.recv()
            if name == "descriptor":
                multiprocessing.reduction.send_handle(connection, NULL, None)
            else:
                connection.send(CALLS[name](*arguments))
    except (EOFError, ConnectionError):
        connection.close()


def serve(way, path):
    if way == "manager":
        server = Manager(address=path, authkey=KEY).get_server()
        ready()
        server.serve_forever()
    with multiprocessing.connection.Listener(path, authkey=KEY, backlog=64) as listener:
        ready()
        while True:
            connection = listener.accept()
            threading.Thread(target=serve_connection, args=(connection,), daemon=True).start()


def ready():
    sys.stdout.write("!")
    sys.stdout.flush()


def connect(way, path):
    """What makes calls on a connection of its own."""
    if way == "manager":
        manager = Manager(address=path, authkey=KEY)
        manager.connect()
        answers = manager.Answers()
        return lambda name, *arguments: getattr(answers, name)(*arguments)
    connection = multiprocessing.connection.Client(path, authkey=KEY)

    def call(name, *arguments):
        connection.send((name, *arguments))
        if name == "descriptor":
            return os.close(multiprocessing.reduction.recv_handle(connection))
        return connection.recv()

    return call


def answer(line):
    line.send(hello("Joe", "Dalton"))


def lifetime(context):
    ours, theirs = context.Pipe()
    process = context.Process(target=answer, args=(theirs,))
    process.start()
    assert ours.recv() == "Joe Dalton"
    process.join()


def operation(way, what, size, path):
    if what == "lifetime":
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__"])
        return lambda: lifetime(context)
    if what == "connect":
        return lambda: connect(way, path)("hello", "Joe", "Dalton")
    call = connect(way, path)
    arguments = {"hello": ("Joe", "Dalton"), "add": (1, 2), "echo": (b"x" * size,), "descriptor": ()}[what]
    return lambda: call(what, *arguments)


def client(way, what, size, path):
    once = operation(way, what, int(size), path)
    for line in iter(sys.stdin.readline, ""):
        count = range(int(line))
        begun = time.perf_counter()
        for _ in count:
            once()
        print(time.perf_counter() - begun, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.argv[1] == "serve":
        serve(*sys.argv[2:4])
    else:
        client(*sys.argv[2:6])
