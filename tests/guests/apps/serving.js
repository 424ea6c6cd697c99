// `serving.js http2|websocket serve|visit PORT`: a server, and a client that numbers what it
// sends, verifies every answer, prints a line for each, and ends when its stdin does.
const crypto = require('crypto');
const http = require('http');
const http2 = require('http2');
const net = require('net');

const [what, side, port] = process.argv.slice(2);
const MOST = 100000;
const UNDER_WAY = 8;
let ending = false;

function fail(why) {
  console.error(why);
  process.exit(1);
}

function check(holds, why) {
  if (!holds) fail(why);
}

// What is sent as number `turn`.
function content(turn) {
  const size = [100, 5000, 70000, 10, 200][turn % 5];
  return Buffer.from(`${turn},`.repeat(size / 5));
}

function collect(stream, then) {
  const parts = [];
  stream.on('data', (part) => parts.push(part));
  stream.on('end', () => then(Buffer.concat(parts)));
}

// Streams of one HTTP/2 session in cleartext. The answer to number n is its body, and n.
const http2Side = {
  serve() {
    const server = http2.createServer();
    server.on('session', (session) => {
      session.answered = 0;
    });
    server.on('stream', (stream, headers) => {
      collect(stream, (body) => {
        stream.session.answered++;
        stream.respond({ ':status': 200, turn: headers.turn, answered: stream.session.answered });
        stream.end(body);
      });
    });
    server.listen(port, '127.0.0.1');
    return server;
  },

  visit() {
    const session = http2.connect(`http://127.0.0.1:${port}`);
    let [turn, answered, open] = [0, 0, 0];
    session.on('error', (e) => fail(`session: ${e}`));
    session.on('goaway', (code) => fail(`goaway ${code}`));
    const next = () => {
      if (ending || turn === MOST) {
        if (open === 0) session.close();
        return;
      }
      const [own, body] = [++turn, content(turn)];
      const stream = session.request({ ':method': 'POST', ':path': '/', turn: own });
      open++;
      stream.on('error', (e) => fail(`stream ${own}: ${e}`));
      stream.on('response', (headers) => {
        check(headers[':status'] === 200, `status ${headers[':status']}`);
        check(headers.turn === `${own}`, `turn ${headers.turn} for ${own}`);
      });
      collect(stream, (got) => {
        check(got.equals(body), `${got.length} bytes for ${own}: ${got.subarray(0, 80)}`);
        open--;
        console.log(++answered);
        next();
      });
      stream.end(body);
    };
    for (let i = 0; i < UNDER_WAY; i++) next();
  },
};

// RFC 6455 by hand: `masked` frames are those of the client.
const [TEXT, CLOSE] = [1, 8];

function frame(kind, payload, masked) {
  const long = payload.length > 65535 ? 8 : payload.length > 125 ? 2 : 0;
  const head = Buffer.alloc(2 + long);
  head[0] = 0x80 | kind;
  head[1] = (masked ? 0x80 : 0) | (long === 8 ? 127 : long === 2 ? 126 : payload.length);
  if (long === 2) head.writeUInt16BE(payload.length, 2);
  if (long === 8) head.writeBigUInt64BE(BigInt(payload.length), 2);
  if (!masked) return Buffer.concat([head, payload]);
  const mask = crypto.randomBytes(4);
  return Buffer.concat([head, mask, payload.map((byte, i) => byte ^ mask[i % 4])]);
}

// Calls `then(kind, payload)` for each frame that comes.
function frames(socket, first, masked, then) {
  let rest = first;
  const take = () => {
    while (rest.length >= 2) {
      check(((rest[1] & 0x80) !== 0) === masked, 'masked by the wrong side');
      let [length, at] = [rest[1] & 0x7f, 2];
      const long = { 126: 2, 127: 8 }[length] || 0;
      if (rest.length < at + long) return;
      if (long === 2) length = rest.readUInt16BE(at);
      if (long === 8) length = Number(rest.readBigUInt64BE(at));
      at += long + (masked ? 4 : 0);
      if (rest.length < at + length) return;
      let payload = rest.subarray(at, at + length);
      const mask = rest.subarray(at - 4, at);
      if (masked) payload = payload.map((byte, i) => byte ^ mask[i % 4]);
      const kind = rest[0] & 0x0f;
      rest = rest.subarray(at + length);
      then(kind, payload);
    }
  };
  socket.on('data', (part) => {
    rest = Buffer.concat([rest, part]);
    take();
  });
  take();
}

function accepted(key) {
  const magic = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11';
  return crypto.createHash('sha1').update(key + magic).digest('base64');
}

// Each message comes back with its number on the connection before it.
const websocketSide = {
  serve() {
    const server = http.createServer();
    server.on('upgrade', (request, socket, first) => {
      const key = accepted(request.headers['sec-websocket-key']);
      socket.write('HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n' +
        `Connection: Upgrade\r\nSec-WebSocket-Accept: ${key}\r\n\r\n`);
      let count = 0;
      frames(socket, first, true, (kind, payload) => {
        if (kind === CLOSE) {
          socket.end(frame(CLOSE, payload, false));
          return;
        }
        const number = Buffer.from(`${++count}:`);
        socket.write(frame(TEXT, Buffer.concat([number, payload]), false));
      });
    });
    server.listen(port, '127.0.0.1');
    return server;
  },

  visit() {
    const key = crypto.randomBytes(16).toString('base64');
    const headers = {
      Connection: 'Upgrade',
      Upgrade: 'websocket',
      'Sec-WebSocket-Key': key,
      'Sec-WebSocket-Version': 13,
    };
    const request = http.get({ host: '127.0.0.1', port, headers });
    request.on('error', (e) => fail(`request: ${e}`));
    request.on('upgrade', (response, socket, first) => {
      check(response.headers['sec-websocket-accept'] === accepted(key), 'another accept');
      let [sent, got, closed] = [0, 0, false];
      socket.on('error', (e) => fail(`socket: ${e}`));
      socket.on('end', () => check(closed, 'the server has closed'));
      const next = () => {
        if (!ending && sent < MOST) {
          socket.write(frame(TEXT, content(++sent), true));
        } else if (got === sent) {
          socket.write(frame(CLOSE, Buffer.from([3, 232]), true));
        }
      };
      frames(socket, first, false, (kind, payload) => {
        if (kind === CLOSE) {
          check(got === sent, `closed after ${got} of ${sent}`);
          closed = true;
          socket.end();
          return;
        }
        got++;
        const wanted = Buffer.concat([Buffer.from(`${got}:`), content(got)]);
        check(payload.equals(wanted), `answer ${got}: ${payload.subarray(0, 80)}`);
        console.log(got);
        next();
      });
      for (let i = 0; i < UNDER_WAY; i++) next();
    });
  },
};

const own = { http2: http2Side, websocket: websocketSide }[what];
if (side === 'serve') {
  const server = own.serve();
  process.on('SIGTERM', () => server.close(() => process.exit(0)));
} else {
  process.stdin.resume().on('end', () => {
    ending = true;
  });
  own.visit();
}
