"""mongo_server.py PORT: as much of MongoDB's wire protocol as the clients' tests need, since Debian packages no server.

One thread a connection, collections in memory. Messages are OP_MSG with both kinds of section, and OP_QUERY for the
first hello. Cursors are kept until they are read to their end or killed. Two commands are not MongoDB's:
{"block": 1} never answers, {"open": 1} tells how many cursors and blocked calls there are.
"""

import itertools
import socketserver
import struct
import sys
import threading

import bson

OP_REPLY, OP_QUERY, OP_MSG = 1, 2004, 2013
LARGEST_DOCUMENT, LARGEST_MESSAGE, LARGEST_BATCH = 16 * 2**20, 48_000_000, 100_000


class CommandError(Exception):
    """Error code, name and text of an answer {"ok": 0}."""


class Store:
    """The commands, each a method of its name that takes and returns a document."""

    def __init__(self):
        self.lock = threading.Lock()
        self.collections, self.cursors = {}, {}
        self.numbers = itertools.count(1000)
        self.blocked = 0

    def run(self, command):
        name = next(iter(command))
        method = getattr(self, f"do_{name.lower()}", None)
        if method is None:
            raise CommandError(59, "CommandNotFound", f"no such command: '{name}'")
        with self.lock:
            answer = method(command)
        if name == "block":
            threading.Event().wait()
        return answer

    def collection(self, command, name):
        return self.collections.setdefault((command["$db"], name), [])

    def do_hello(self, command):
        return {
            "isWritablePrimary": True,
            "ismaster": True,
            "helloOk": True,
            "maxBsonObjectSize": LARGEST_DOCUMENT,
            "maxMessageSizeBytes": LARGEST_MESSAGE,
            "maxWriteBatchSize": LARGEST_BATCH,
            "logicalSessionTimeoutMinutes": 30,
            "connectionId": next(self.numbers),
            "minWireVersion": 0,
            "maxWireVersion": 21,
            "readOnly": False,
        }

    do_ismaster = do_hello

    def do_ping(self, command):
        return {}

    do_endsessions = do_ping

    def do_block(self, command):
        self.blocked += 1

    def do_insert(self, command):
        documents = self.collection(command, command["insert"])
        known = {document["_id"] for document in documents}
        inserted, errors = 0, []
        for index, document in enumerate(command["documents"]):
            if document["_id"] in known:
                errors.append({"index": index, "code": 11000, "errmsg": "E11000 duplicate key error"})
                if command.get("ordered", True):
                    break
                continue
            known.add(document["_id"])
            documents.append(document)
            inserted += 1
        return {"n": inserted} | ({"writeErrors": errors} if errors else {})

    def select(self, command, name, wanted):
        return [each for each in self.collection(command, name) if wanted.items() <= each.items()]

    def do_find(self, command):
        found = self.select(command, command["find"], command.get("filter", {}))
        if limit := command.get("limit"):
            found = found[:limit]
        size = command.get("batchSize", 101)
        batch, rest = found[:size], found[size:]
        number = 0
        if rest and not command.get("singleBatch"):
            number = next(self.numbers)
            self.cursors[number] = rest
        return {"cursor": {"id": bson.Int64(number), "ns": self.ns(command, "find"), "firstBatch": batch}}

    def do_getmore(self, command):
        number = command["getMore"]
        if number not in self.cursors:
            raise CommandError(43, "CursorNotFound", f"cursor id {number} not found")
        rest = self.cursors.pop(number)
        size = command.get("batchSize") or len(rest)
        batch, rest = rest[:size], rest[size:]
        if rest:
            self.cursors[number] = rest
        left = bson.Int64(number if rest else 0)
        return {"cursor": {"id": left, "ns": self.ns(command, "collection"), "nextBatch": batch}}

    def ns(self, command, key):
        return f"{command['$db']}.{command[key]}"

    def do_killcursors(self, command):
        killed = [number for number in command["cursors"] if self.cursors.pop(number, None)]
        return {"cursorsKilled": killed, "cursorsNotFound": [], "cursorsAlive": [], "cursorsUnknown": []}

    def do_update(self, command):
        changed = 0
        for update in command["updates"]:
            found = self.select(command, command["update"], update["q"])
            for document in found if update.get("multi") else found[:1]:
                document.update(update["u"].get("$set", {}))
                for name, by in update["u"].get("$inc", {}).items():
                    document[name] = document.get(name, 0) + by
                changed += 1
        return {"n": changed, "nModified": changed}

    def do_delete(self, command):
        documents = self.collection(command, command["delete"])
        before = len(documents)
        for delete in command["deletes"]:
            found = self.select(command, command["delete"], delete["q"])
            for document in found if delete["limit"] == 0 else found[:1]:
                documents.remove(document)
        return {"n": before - len(documents)}

    def do_open(self, command):
        return {"cursors": len(self.cursors), "blocked": self.blocked}


class Connection(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True
    wbufsize = -1

    def handle(self):
        while len(header := self.rfile.read(16)) == 16:
            length, number, _, kind = struct.unpack("<iiii", header)
            body = self.rfile.read(length - 16)
            if len(body) < length - 16:
                return
            command = self.query(body) if kind == OP_QUERY else self.message(body)
            answer = bson.encode(self.answer(command))
            if kind == OP_QUERY:
                kind, answer = OP_REPLY, struct.pack("<iqii", 8, 0, 0, 1) + answer
            else:
                answer = struct.pack("<iB", 0, 0) + answer
            self.wfile.write(struct.pack("<iiii", 16 + len(answer), 0, number, kind) + answer)
            self.wfile.flush()

    def query(self, body):
        name_end = body.index(b"\0", 4)
        return bson.decode(body[name_end + 9 :])

    def message(self, body):
        """The command with what its document sequences (kind 1) carry put back where they belong."""
        command, sequences, at = None, {}, 4
        while at < len(body):
            kind, (size,) = body[at], struct.unpack_from("<i", body, at + 1)
            section = body[at + 1 : at + 1 + size]
            if kind == 0:
                command = bson.decode(section)
            else:
                name, _, documents = section[4:].partition(b"\0")
                sequences[name.decode()] = bson.decode_all(documents)
            at += 1 + size
        return command | sequences

    def answer(self, command):
        try:
            return {"ok": 1.0} | self.server.store.run(command)
        except CommandError as error:
            code, name, text = error.args
            return {"ok": 0.0, "code": code, "codeName": name, "errmsg": text}


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 100
    store = Store()


if __name__ == "__main__":
    with Server(("127.0.0.1", int(sys.argv[1])), Connection) as server:
        print("ready for drivers", flush=True)
        server.serve_forever()
