# A pool of processes that count in shared memory; one step for each line of input.
import multiprocessing
import sys
from multiprocessing import shared_memory

SIZE = 1 << 20
PIECES = 64


def work(job):
    name, first, count = job
    block = shared_memory.SharedMemory(name=name)
    total = 0
    for at in range(first, first + count):
        block.buf[at] = (block.buf[at] + 1) % 251
        total += block.buf[at]
    block.close()
    with everything.get_lock():
        everything.value += total
    return total


if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    block = shared_memory.SharedMemory(create=True, size=SIZE)
    everything = context.Value("q", 0)
    with context.Pool(3) as pool:
        for line in sys.stdin:
            piece = SIZE // PIECES
            jobs = [(block.name, n * piece, piece) for n in range(PIECES)]
            total = sum(pool.imap_unordered(work, jobs))
            print(line.strip(), total, everything.value, flush=True)
    block.close()
    block.unlink()
