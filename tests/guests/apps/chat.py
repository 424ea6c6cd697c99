# A chat both sides of which may be moved: `chat.py serve ADDRESS PORT`, then `chat.py talk ADDRESS PORT`. On each
# connection both sides say numbered lines, each with a checksum of all that was said before it, and verify what they
# hear. The one that talks says how many lines it has said when its stdin ends, and its end; then so does the other.
# Prints the lines that it has heard, now and then.
import asyncio
import random
import sys
import zlib

CONNECTIONS = 3
heard = 0


def line(number, text, before):
    said = b'%d %s' % (number, text)
    checksum = zlib.crc32(said, before)
    return b'%s %08x\n' % (said, checksum), checksum


async def say(writer, enough):
    number, checksum = 0, 0
    while not enough.is_set():
        number += 1
        text = random.choice(b'abcdef').to_bytes(1, 'big') * random.randrange(2000)
        said, checksum = line(number, text, checksum)
        writer.write(said)
        await writer.drain()
        await asyncio.sleep(random.random() / 50)
    writer.write(b'end %d\n' % number)
    writer.write_eof()


async def hear(reader):
    global heard
    number, checksum = 0, 0
    async for got in reader:
        if got == b'end %d\n' % number:
            break
        number, heard = number + 1, heard + 1
        wanted, checksum = line(number, got.split(b' ')[1], checksum)
        if got != wanted:
            raise ValueError(f'heard {got!r}, wanted {wanted!r}')
        if heard % 10 == 0:
            print(heard, flush=True)
    rest = await reader.read()
    if got != b'end %d\n' % number or rest:
        raise ValueError(f'{number} lines, at the end {got!r} {rest!r}')


async def answer(reader, writer):
    enough = asyncio.Event()
    saying = asyncio.create_task(say(writer, enough))
    await hear(reader)
    enough.set()
    await saying
    writer.close()


async def serve(address, port):
    come = asyncio.Queue()
    await asyncio.start_server(lambda *streams: come.put_nowait(streams), address, port)
    answers = [asyncio.create_task(answer(*await come.get())) for _ in range(CONNECTIONS)]
    await asyncio.gather(*answers)


async def talk(address, port):
    enough = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, enough.set)
    streams = [await asyncio.open_connection(address, port) for _ in range(CONNECTIONS)]
    both = [(say(writer, enough), hear(reader)) for reader, writer in streams]
    await asyncio.gather(*sum(both, ()))


what, address, port = sys.argv[1:]
asyncio.run({'serve': serve, 'talk': talk}[what](address, int(port)))
