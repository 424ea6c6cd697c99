# Slow readers of an HTTP server: `reading.py PORT FILE`. Gets /large over several connections that
# the server closes behind it, a little of each in turns, and compares it with the file. Begins anew
# with those that are through, until stdin ends; prints its turns.
import select
import socket
import sys

port, path = int(sys.argv[1]), sys.argv[2]
MOST = 100000
wanted = open(path, 'rb').read()


class Download:
    def __init__(self, step):
        self.step = step
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        self.socket.connect(('127.0.0.1', port))
        self.socket.sendall(b'GET /large HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n')
        self.got = b''

    def read(self):
        """Reads a step; is it through?"""
        want = len(self.got) + self.step
        while len(self.got) < want:
            part = self.socket.recv(self.step)
            if not part:
                self.verify()
                return True
            self.got += part
        return False

    def verify(self):
        head, _, body = self.got.partition(b'\r\n\r\n')
        if not head.startswith(b'HTTP/1.1 200 ') or body != wanted:
            sys.exit(f'{len(body)} of {len(wanted)} bytes behind {head!r}')
        self.socket.close()


steps = [3000, 10000, 40000, 150000]
downloads = [Download(step) for step in steps]
for turn in range(MOST):
    if select.select([sys.stdin], [], [], 0)[0]:
        break
    downloads = [Download(d.step) if d.read() else d for d in downloads]
    print(turn, flush=True)
for download in downloads:
    while not download.read():
        pass
