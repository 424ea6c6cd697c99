# A client of a name server: `resolving.py PORT`. Each turn asks for an address over UDP, from a socket that
# is kept and from a new one, and verifies the answer, which must come without a second question; now and
# then over TCP as well. Prints its turns, until its stdin ends.
import select
import socket
import struct
import sys

server = ('127.0.0.1', int(sys.argv[1]))
MOST = 1000000
NAMES = 200
PATIENCE = 60


def question(turn):
    name = b''.join(struct.pack('B', len(word)) + word
                    for word in (b'n%d' % (turn % NAMES), b'moved', b'test')) + b'\0'
    return struct.pack('>6H', turn % 65536, 0x100, 1, 0, 0, 0) + name + struct.pack('>2H', 1, 1)


def verify(turn, asked, got):
    number, flags, _, answers = struct.unpack('>4H', got[:8])
    address = bytes((10, 77, 0, turn % NAMES))
    good = number == turn % 65536 and flags & 0x800f == 0x8000 and answers == 1
    if not good or got[12:len(asked)] != asked[12:] or got[-4:] != address:
        sys.exit(f'asked {asked!r}: got {got!r}')


def datagrams():
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(PATIENCE)
    made.connect(server)
    return made


def ask(made, turn):
    asked = question(turn)
    made.send(asked)
    verify(turn, asked, made.recv(65536))


def ask_by_tcp(turn):
    asked = question(turn)
    with socket.create_connection(server, PATIENCE) as made:
        made.sendall(struct.pack('>H', len(asked)) + asked)
        stream = made.makefile('rb')
        verify(turn, asked, stream.read(struct.unpack('>H', stream.read(2))[0]))


kept, turn = datagrams(), 0
while turn < MOST and not select.select([sys.stdin], [], [], 0)[0]:
    turn += 1
    ask(kept, turn)
    with datagrams() as new:
        ask(new, turn + 1)
    if turn % 10 == 0:
        ask_by_tcp(turn)
    print(turn, flush=True)
