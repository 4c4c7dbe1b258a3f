"""supervise.py USER SIGNAL READY COMMAND...: runs a server for as long as standard input stays open.

Prints the server's process id, then "ready" once READY has been in its output, which it copies to standard
error. USER is who runs the server, or "" for whoever runs this. However the tests end, killed by a time limit or
stopped in the middle, their end of standard input closes: then the server gets SIGNAL and, if it has not ended 20 s
later, it and its process group are killed.
"""

import os
import signal
import subprocess
import sys
import threading


def copy_output(server, ready):
    """Every line to standard error, one word to standard output when the awaited one comes."""
    for line in server.stdout:
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
        if ready and ready in line:
            ready = None
            print("ready", flush=True)
    os.close(1)  # the server is gone: whoever waits for it to be ready need not wait longer
    server.wait()


def stop(server, number):
    server.send_signal(number)
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        pass
    try:
        os.killpg(server.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def main(user, number, ready, *command):
    # An interrupted test run interrupts the process group, and the server's end is for its tests to decide.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    who = {"user": user, "group": "nogroup", "extra_groups": []} if user else {}
    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        **who,
    )
    print(server.pid, flush=True)
    threading.Thread(target=copy_output, args=[server, ready.encode()], daemon=True).start()
    sys.stdin.read()
    stop(server, signal.Signals[number])


main(*sys.argv[1:])
