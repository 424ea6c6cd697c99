// Each line of input starts one step: timers of different lengths, a file read by the thread
// pool, a hash. Its result is one line. A ticking interval runs all the time.
const crypto = require('crypto');
const fs = require('fs');
const readline = require('readline');

let ticks = 0;
let last = process.hrtime.bigint();
const ticker = setInterval(() => {
  const now = process.hrtime.bigint();
  if (now < last) {
    console.log('the clock went back');
    process.exit(1);
  }
  last = now;
  ticks++;
}, 5);

function sleep(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

async function step(line, before) {
  const order = [];
  await Promise.all([60, 20, 40].map((ms) => sleep(ms).then(() => order.push(ms))));
  const own = await fs.promises.readFile(__filename);
  let hash = crypto.createHash('sha256').update(before).update(own).digest('hex');
  for (let i = 0; i < 50000; i++) hash = crypto.createHash('sha256').update(hash).digest('hex');
  console.log(`${line} ${order.join(',')} ${hash}`);
  return hash;
}

async function main() {
  let hash = '';
  for await (const line of readline.createInterface({ input: process.stdin })) {
    hash = await step(line, hash);
  }
  clearInterval(ticker);
  console.log(`end ${hash} ${ticks > 10 ? 'ticked' : 'did not tick'}`);
}

main();
