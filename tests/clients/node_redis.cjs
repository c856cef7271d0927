// Uses a Larder through node-redis: `node node_redis.cjs PORT PROTOCOL`. Exits with an error at the
// first difference. NODE_PATH names the folder with the package, which only `require` heeds.
"use strict";

const assert = require("node:assert/strict");
const { createClient, RESP_TYPES } = require("redis");

const port = Number(process.argv[2]);
const RESP = Number(process.argv[3]);

async function fails(text, promise) {
  await assert.rejects(promise, (why) => why.message.includes(text));
}

async function connection(client) {
  assert.equal(await client.ping(), "PONG");
  assert.equal(await client.echo("hello"), "hello");
  assert.equal(await client.clientGetName(), "node");
  assert.ok((await client.clientId()) > 0);
  const info = await client.clientInfo();
  assert.equal(info.name, "node");
  assert.equal((await client.clientList()).length, 1);
  await client.clientPause(1);
  assert.equal(await client.clientUnpause(), "OK");
  assert.equal(await client.clientNoEvict(true), "OK");
  assert.equal(await client.clientNoTouch(false), "OK");
  await client.select(1);
  await client.select(0);
}

async function strings(client) {
  assert.equal(await client.set("s", "value", { expiration: { type: "EX", value: 100 } }), "OK");
  assert.equal(await client.set("s", "other", { condition: "NX" }), null);
  assert.equal(await client.get("s"), "value");
  assert.equal(await client.getRange("s", 1, -1), "alue");
  assert.equal(await client.append("s", "!"), 6);
  assert.equal(await client.strLen("s"), 6);
  assert.equal(await client.getEx("s", { type: "PX", value: 5000 }), "value!");
  assert.equal(await client.getDel("s"), "value!");
  assert.equal(await client.mSet({ a: "1", b: "2" }), "OK");
  assert.deepEqual(await client.mGet(["a", "nothing", "b"]), ["1", null, "2"]);
  assert.equal(await client.incrBy("n", 5), 5);
  assert.equal(await client.decr("n"), 4);
  assert.equal(Number(await client.incrByFloat("n", 0.5)), 4.5);
  await fails("not an integer", client.incr("n"));
  await client.mSet({ x: "ohmytext", y: "mynewtext" });
  assert.equal(await client.lcs("x", "y"), "mytext");
  assert.equal((await client.lcsIdx("x", "y")).len, 6);
}

async function bits(client) {
  assert.equal(await client.setBit("bits", 7, 1), 0);
  assert.equal(await client.getBit("bits", 7), 1);
  assert.equal(await client.bitCount("bits"), 1);
  assert.equal(await client.bitPos("bits", 1), 7);
  assert.equal(await client.bitOp("NOT", "inverse", "bits"), 1);
  const field = [{ operation: "INCRBY", encoding: "u8", offset: 0, increment: 9 }];
  assert.deepEqual(await client.bitField("bits", field), [10]);
}

async function keys(client) {
  await client.flushDb();
  await client.mSet({ k1: "v", k2: "v", k3: "v" });
  assert.equal(await client.exists(["k1", "k2", "none"]), 2);
  assert.equal(await client.type("k1"), "string");
  assert.equal(await client.rename("k1", "k9"), "OK");
  assert.equal(await client.copy("k9", "k1"), 1);
  assert.deepEqual((await client.keys("k*")).sort(), ["k1", "k2", "k3", "k9"]);
  const seen = [];
  for await (const some of client.scanIterator({ MATCH: "k*", COUNT: 1 })) seen.push(...some);
  assert.deepEqual(seen.sort(), ["k1", "k2", "k3", "k9"]);
  assert.equal(await client.expire("k2", 100, "NX"), 1);
  assert.ok((await client.ttl("k2")) > 90);
  assert.equal(await client.pExpireAt("k2", 4_000_000_000_001), 1);
  assert.equal(await client.pExpireTime("k2"), 4_000_000_000_001);
  assert.equal(await client.persist("k2"), 1);
  assert.equal(await client.objectEncoding("k2"), "embstr");
  const bytes = client.withTypeMapping({ [RESP_TYPES.BLOB_STRING]: Buffer });
  const dump = await bytes.dump("k2");
  assert.equal(await client.restore("again", 0, dump), "OK");
  assert.equal(await client.get("again"), "v");
  assert.equal(await client.unlink(["again", "none"]), 1);
  assert.equal(await client.dbSize(), 4);
}

async function server(client) {
  assert.match(await client.info("server"), /redis_version:7/);
  const found = await client.configGet("maxclients");
  assert.equal(found.maxclients, "10000");
  assert.equal(await client.configSet("maxmemory-samples", "6"), "OK");
  assert.ok((await client.commandCount()) > 70);
  assert.ok((await client.commandList()).includes("get"));
  const [get] = await client.commandInfo(["get"]);
  assert.equal(get.name, "get");
  assert.equal(get.arity, 2);
  assert.deepEqual(await client.commandGetKeys(["MSET", "a", "1", "b", "2"]), ["a", "b"]);
  assert.ok((await client.memoryUsage("k1")) > 0);
  assert.ok((await client.memoryStats())["peak.allocated"] > 0);
  assert.deepEqual(await client.latencyLatest(), []);
  assert.equal((await client.role()).role, "master");
}

async function pipeline(client) {
  const replies = await Promise.all([client.set("p", "1"), client.incr("p"), client.get("p")]);
  assert.deepEqual(replies, ["OK", 2, "2"]);
  const value = "\u00e9".repeat(1 << 20);
  await client.set("long", value);
  assert.equal(await client.get("long"), value);
}

async function main() {
  const client = createClient({ socket: { host: "127.0.0.1", port }, RESP, name: "node" });
  client.on("error", (why) => { throw why; });
  await client.connect();
  await client.flushAll();
  for (const part of [connection, strings, bits, keys, server, pipeline]) await part(client);
  await client.quit();
  console.log(`node-redis, RESP${RESP}: all as expected`);
}

main().catch((why) => {
  console.error(why);
  process.exit(1);
});
