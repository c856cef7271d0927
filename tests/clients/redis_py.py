"""Uses a Larder through redis-py: `redis_py.py PORT PROTOCOL`. Exits with an error at the first difference."""

import sys

import redis

port, protocol = int(sys.argv[1]), int(sys.argv[2])
r = redis.Redis(port=port, protocol=protocol, client_name="py", decode_responses=True)


def same(found, wanted):
    if found != wanted:
        raise AssertionError(f"RESP{protocol}: {found!r} is not {wanted!r}")


def fails(text, call, *args):
    try:
        call(*args)
    except redis.ResponseError as why:
        if text not in str(why):
            raise
    else:
        raise AssertionError(f"no error: {text}")


r.flushall()

# connection
same(r.ping(), True)
same(r.echo("hello"), "hello")
same(r.client_getname(), "py")
same(r.client_info()["resp"], str(protocol))
same(r.client_info()["lib-name"], "redis-py")
same(r.client_id() > 0, True)
same([client["name"] for client in r.client_list()], ["py"])
same(r.client_setname("other"), True)
same(r.client_pause(1), True)
same(r.client_unpause(), "OK")
same(r.client_unblock(999), False)
same(r.client_no_evict("ON"), "OK")
same(r.client_no_touch("OFF"), "OK")
other = redis.Redis(port=port, protocol=protocol, db=5)
same(other.set("k", "five"), True)
same(r.get("k"), None)
same(other.client_kill_filter(skipme=True, _id=999), 0)
other.close()

# strings
same(r.set("s", "value", ex=100, nx=True), True)
same(r.set("s", "value", nx=True), None)
same(r.set("s", "new", xx=True, keepttl=True, get=True), "value")
same(0 < r.ttl("s") <= 100, True)
same(r.get("s"), "new")
same(r.getrange("s", 1, -1), "ew")
same(r.setrange("s", 3, "er"), 5)
same(r.strlen("s"), 5)
same(r.append("s", "!"), 6)
same(r.getset("s", "x"), "newer!")
same(r.getex("s", px=5000), "x")
same(r.getdel("s"), "x")
same(r.mset({"a": 1, "b": 2}), True)
same(r.msetnx({"b": 3, "c": 4}), False)
same(r.mget("a", "nothing", "b"), ["1", None, "2"])
same(r.incr("n", 5), 5)
same(r.decr("n", 2), 3)
same(r.incrbyfloat("n", 0.5), 3.5)
same(r.setex("e", 10, "x"), True)
same(r.psetex("e", 1000, "x"), True)
same(r.setnx("e", "y"), False)
fails("not an integer", r.incr, "e")
r.mset({"x": "ohmytext", "y": "mynewtext"})
same(r.lcs("x", "y"), "mytext")
same(r.lcs("x", "y", len=True), 6)
matches = [[[4, 7], [5, 8], 4], [[2, 3], [0, 1], 2]]
found = r.lcs("x", "y", idx=True, withmatchlen=True)
same(found, {"matches": matches, "len": 6} if protocol == 3 else ["matches", matches, "len", 6])

# bits
same(r.setbit("bits", 7, 1), 0)
same(r.getbit("bits", 7), 1)
same(r.bitcount("bits"), 1)
same(r.bitcount("bits", 0, 5, "BIT"), 0)
same(r.bitpos("bits", 1), 7)
same(r.bitop("NOT", "inverse", "bits"), 1)
same(r.bitfield("bits").set("u8", 0, 255).incrby("u8", 0, 10).get("u4", 0).execute(), [1, 9, 0])
same(r.bitfield_ro("bits", "u8", 0), [9])

# keys
r.flushdb()
r.mset({"k1": "v", "k2": "v", "k3": "v"})
same(r.exists("k1", "k2", "none"), 2)
same(r.type("k1"), "string")
same(r.touch("k1", "none"), 1)
same(r.rename("k1", "k9"), True)
same(r.renamenx("k9", "k2"), False)
same(r.copy("k9", "k1"), True)
same(r.move("k1", 1), True)
same(sorted(r.keys("k*")), ["k2", "k3", "k9"])
same(sorted(r.scan_iter(match="k*", count=1, _type="string")), ["k2", "k3", "k9"])
same(r.randomkey() in ("k2", "k3", "k9"), True)
same(r.expire("k2", 100, nx=True), True)
same(r.expire("k2", 50, gt=True), False)
same(r.pexpire("k2", 200_000, gt=True), True)
same(100 < r.ttl("k2") <= 200, True)
same(100_000 < r.pttl("k2") <= 200_000, True)
same(r.expireat("k2", 4_000_000_000), True)
same(r.expiretime("k2"), 4_000_000_000)
same(r.pexpireat("k2", 4_000_000_000_001), True)
same(r.pexpiretime("k2"), 4_000_000_000_001)
same(r.persist("k2"), True)
same((r.ttl("k2"), r.ttl("none")), (-1, -2))
same(r.object("encoding", "k2"), "embstr")
raw = redis.Redis(port=port, protocol=protocol)
same(raw.restore("again", 0, raw.dump("k2")), b"OK")
same(r.get("again"), "v")
same(r.delete("again", "none"), 1)
same(r.unlink("k2"), 1)
same(r.dbsize(), 2)
same(r.swapdb(0, 1), True)
same(r.get("k1"), "v")

# server
same(r.info()["redis_version"].split(".")[0], "7")
same(r.info("keyspace")["db0"]["keys"], 1)
same(r.config_get("maxclients"), {"maxclients": "10000"})
same(r.config_set("maxmemory-samples", 6), True)
same(r.config_resetstat(), True)
same(len(r.time()), 2)
same(r.slowlog_len() >= 0, True)
same(isinstance(r.slowlog_get(), list), True)
same(r.memory_usage("k1") > 0, True)
same("peak.allocated" in r.memory_stats(), True)
same(r.memory_purge(), True)
same(r.latency_latest(), [])
same("get" in r.command() if protocol == 2 else True, True)
same(r.command_count() > 70, True)
same(r.command_getkeys("MSET", "a", "1", "b", "2"), ["a", "b"])
same("get" in r.command_list(), True)
same(r.role()[0], "master")

# pipelines, and errors in them
pipe = r.pipeline(transaction=False)
pipe.set("p", 1).incr("p").get("p").incr("k1")
found = pipe.execute(raise_on_error=False)
same(found[:3], [True, 2, "2"])
same("not an integer" in str(found[3]), True)

# values of any bytes, and long ones
value = bytes(range(256)) * 8192
same(raw.set("bytes", value), True)
same(raw.get("bytes"), value)
print(f"redis-py {redis.__version__}, RESP{protocol}: all as expected")
