# A client of redis or memcached: `asking.py redis|memcached PORT`. Each turn changes and reads
# values over one connection that is kept, and verifies every answer; memcached is asked over a new
# connection as well. Prints its turns. At the end of stdin, or after many turns, verifies what is
# left of all of them.
import select
import socket
import sys

what, port = sys.argv[1], int(sys.argv[2])
MOST = 200000
KEYS = 50


class Connection:
    def __init__(self):
        self.socket = socket.create_connection(('127.0.0.1', port))
        self.file = self.socket.makefile('rb')

    def ask(self, question, wanted):
        """Sends a question, and reads exactly the wanted answer."""
        self.socket.sendall(question)
        got = self.file.read(len(wanted))
        if got != wanted:
            sys.exit(f'asked {question[:80]!r}: got {got[:200]!r}, wanted {wanted[:200]!r}')

    def close(self):
        self.socket.shutdown(socket.SHUT_WR)
        rest = self.file.read()
        if rest:
            sys.exit(f'at the end came {rest[:200]!r}')
        self.socket.close()


def value(turn):
    return b'%d,' % turn * (1 + turn * 7919 % 3000)


def redis(*words):
    bulks = (b'$%d\r\n%s\r\n' % (len(word), word) for word in words)
    return b'*%d\r\n' % len(words) + b''.join(bulks)


def bulk(word):
    return b'$%d\r\n%s\r\n' % (len(word), word)


def redis_turn(kept, turn):
    key, content = b'key%d' % (turn % KEYS), value(turn)
    before = b'$-1\r\n' if turn <= KEYS else bulk(value(turn - KEYS))
    kept.ask(redis(b'INCR', b'turns'), b':%d\r\n' % turn)
    # Three questions at once.
    questions = redis(b'GET', key) + redis(b'SET', key, content) + redis(b'STRLEN', key)
    kept.ask(questions, before + b'+OK\r\n:%d\r\n' % len(content))


def redis_end(kept, turns):
    kept.ask(redis(b'GET', b'turns'), bulk(b'%d' % turns))
    for turn in range(max(1, turns - KEYS + 1), turns + 1):
        kept.ask(redis(b'GET', b'key%d' % (turn % KEYS)), bulk(value(turn)))


def shown(key, content):
    return b'VALUE %s 0 %d\r\n%s\r\nEND\r\n' % (key, len(content), content)


def store(key, content):
    return b'set %s 0 0 %d\r\n%s\r\n' % (key, len(content), content)


def memcached_turn(kept, turn):
    key, content = b'key%d' % (turn % KEYS), value(turn)
    if turn == 1:
        kept.ask(store(b'turns', b'0'), b'STORED\r\n')
    kept.ask(b'incr turns 1\r\n', b'%d\r\n' % turn)
    before = b'END\r\n' if turn <= KEYS else shown(key, value(turn - KEYS))
    kept.ask(b'get %s\r\n' % key + store(key, content), before + b'STORED\r\n')
    new = Connection()
    new.ask(b'get turns\r\nget %s\r\n' % key, shown(b'turns', b'%d' % turn) + shown(key, content))
    new.close()


def memcached_end(kept, turns):
    kept.ask(b'get turns\r\n', shown(b'turns', b'%d' % turns))
    for turn in range(max(1, turns - KEYS + 1), turns + 1):
        key = b'key%d' % (turn % KEYS)
        kept.ask(b'get %s\r\n' % key, shown(key, value(turn)))


take_turn, look = {
    'redis': (redis_turn, redis_end),
    'memcached': (memcached_turn, memcached_end),
}[what]
kept, turn = Connection(), 0
while turn < MOST and not select.select([sys.stdin], [], [], 0)[0]:
    turn += 1
    take_turn(kept, turn)
    print(turn, flush=True)
look(kept, turn)
kept.close()
