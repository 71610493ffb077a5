#!/usr/bin/env python3
"""Exports a tenant as JSON Lines: the lines of `pairdb export`, which `pairdb import` reads.

    pairdb_export.py --client 127.0.0.1:8080 --tenant default keys      # by KeyValue.GetKeyRange
    pairdb_export.py --peer 127.0.0.1:7946 --tenant default rows        # by Replica.StreamKeys
    pairdb_export.py --client ... --tenant default values               # keys, then BatchRead

Any node of the cluster will do: each shows the whole of it. Whatever breaks is begun again where it
broke, at the cursor of the last answer, on the next of the nodes that were given; that is all there
is to resuming. README.md beside this file says how to make the two modules that it imports.
"""

import argparse
import base64
import json
import sys
import time

import grpc

from pairdb.v1 import common_pb2, kv_pb2, kv_pb2_grpc, replica_pb2, replica_pb2_grpc
from pairdb_row import Value, values_of

ATTEMPTS = 5
REPLY_TOO_LARGE = "REPLY_TOO_LARGE"
LEVELS = {
    "one": common_pb2.CONSISTENCY_LEVEL_ONE,
    "quorum": common_pb2.CONSISTENCY_LEVEL_QUORUM,
    "all": common_pb2.CONSISTENCY_LEVEL_ALL,
}
# An answer may hold a row larger than the 4 MiB that grpcio takes unless told otherwise.
OPTIONS = [("grpc.max_receive_message_length", 64 << 20)]
RETRYABLE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}


class Nodes:
    """Channels to the nodes, taken in turn when one fails."""

    def __init__(self, addresses: list[str], stub):
        self.stubs = [stub(grpc.insecure_channel(address, OPTIONS)) for address in addresses]
        self.failures = 0

    def pages(self, call):
        """Yields pages from the first cursor to the last.

        `call(stub, cursor)` yields answers with a `cursor`; the last one's is empty.
        """
        cursor, failed = b"", 0
        while True:
            stub = self.stubs[self.failures % len(self.stubs)]
            try:
                for page in call(stub, cursor):
                    yield page
                    cursor, failed = page.cursor, 0
                    if not cursor:
                        return
            except grpc.RpcError as error:
                self.failures += 1
                failed += 1
                if error.code() not in RETRYABLE or failed > ATTEMPTS:
                    raise
                time.sleep(0.2 * failed)


def put_bytes(line: dict, name: str, data: bytes) -> None:
    """As text where it is UTF-8, else in base64 under another name."""
    try:
        line[name] = data.decode()
    except UnicodeDecodeError:
        line[name + "_base64"] = base64.b64encode(data).decode()


def json_line(key: bytes, values: list[Value]) -> str:
    """A row as `pairdb export` writes it."""

    def sibling(value: Value) -> dict:
        line = {}
        put_bytes(line, "value", value.value)
        if value.content_type:
            line["content_type"] = value.content_type
        if value.expires_at_ms:
            line["expires_at_ms"] = value.expires_at_ms
        return line

    line = {}
    put_bytes(line, "key", key)
    if len(values) == 1:
        line.update(sibling(values[0]))
    else:
        line["siblings"] = [sibling(value) for value in values]
    return json.dumps(line, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def keys(args):
    """Pages of keys, by GetKeyRange: unary, so the cursor is taken along from call to call."""
    nodes = Nodes(args.client, kv_pb2_grpc.KeyValueStub)

    def call(stub, cursor):
        while True:
            request = kv_pb2.GetKeyRangeRequest(
                tenant=args.tenant,
                prefix=args.prefix.encode(),
                consistency=LEVELS[args.consistency],
                limit=args.page,
                cursor=cursor,
            )
            page = stub.GetKeyRange(request, timeout=30)
            yield page
            cursor = page.cursor
            if not cursor:
                return

    for page in nodes.pages(call):
        yield list(page.keys)


def rows(args):
    """Rows as they are stored, by StreamKeys: a stream that goes no faster than it is read."""
    nodes = Nodes(args.peer, replica_pb2_grpc.ReplicaStub)

    def call(stub, cursor):
        request = replica_pb2.StreamKeysRequest(
            tenant=args.tenant,
            prefix=args.prefix.encode(),
            consistency=LEVELS[args.consistency],
            cursor=cursor,
        )
        return stub.StreamKeys(request)

    for page in nodes.pages(call):
        for row in page.rows:
            values = values_of(row.row, int(time.time() * 1000))
            if values:  # else it is a tombstone, or has expired
                yield json_line(row.key, values)


def read_values(args):
    """Keys by GetKeyRange, their values by BatchRead: on the clients' port alone."""
    stub = kv_pb2_grpc.KeyValueStub(grpc.insecure_channel(args.client[0], OPTIONS))

    def read(some):
        request = kv_pb2.BatchReadRequest(
            tenant=args.tenant, keys=some, consistency=LEVELS[args.consistency]
        )
        return zip(some, stub.BatchRead(request, timeout=30).results, strict=True)

    for page in keys(args):
        for at in range(0, len(page), 100):
            some = page[at : at + 100]
            while some:
                left = []  # what the answer had no room for is asked for again, by itself
                for key, result in read(some):
                    if result.WhichOneof("result") == "failure":
                        # The first row always has room: an answer without any is another error.
                        if result.failure.reason != REPLY_TOO_LARGE or key == some[0]:
                            raise SystemExit(f"{key!r}: {result.failure.message}")
                        left.append(key)
                        continue
                    found = result.row.siblings
                    values = [Value(s.value, s.content_type, s.expires_at_ms) for s in found]
                    if values:  # else it was deleted since the page of keys
                        yield json_line(key, values)
                some = left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("what", choices=["keys", "rows", "values"])
    parser.add_argument("--client", action="append", metavar="HOST:PORT", default=[])
    parser.add_argument("--peer", action="append", metavar="HOST:PORT", default=[])
    parser.add_argument("--tenant", default="default")
    parser.add_argument("--prefix", default="")
    parser.add_argument("--consistency", choices=LEVELS, default="quorum")
    parser.add_argument("--page", type=int, default=0, help="keys of a page; 0: the node decides")
    args = parser.parse_args()
    args.client = args.client or ["127.0.0.1:8080"]
    args.peer = args.peer or ["127.0.0.1:7946"]
    out = sys.stdout
    out.reconfigure(encoding="utf-8", newline="\n")
    if args.what == "keys":
        for page in keys(args):
            for key in page:
                line = {}
                put_bytes(line, "key", key)
                print(json.dumps(line, separators=(",", ":"), ensure_ascii=False), file=out)
    else:
        for line in rows(args) if args.what == "rows" else read_values(args):
            print(line, file=out)


if __name__ == "__main__":
    main()
