"""A Python that starts with the libraries imported: a server that forks, and its client.

Importing torch and OpenMMLab takes longer than most runs of a tool in a test. A server imports
them once; for each run it forks a process, which takes over the caller's streams, environment,
folder and command line, and from there on is an ordinary Python: it runs a script, a module (-m)
or code (-c), and ends with its exit code. The client is an executable file that stands for
``python`` on command lines; signals that reach it are passed on.

Not for tests of what happens during an import.
"""

import atexit
import gc
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: What the tools import, sooner or later.
LIBRARIES = (
    'import overlock_mm, mmdet.apis, mmseg.apis, mmpretrain.apis, matplotlib.pyplot, '
    'torch._dynamo, torch.distributed.run, mmdet.datasets, mmdet.evaluation'
)
CLIENT = """#!{python} -IS
import json, os, signal, socket, sys

server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
run = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(run).to_bytes(8, 'big')], [0, 1, 2])
server.sendall(run)
answers = server.makefile()
process = int(answers.readline())
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: os.kill(process, number))
status = int(answers.readline() or 1)
if status < 0:
    if -status in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


class PreloadedPython:
    """The server in a process of its own, and ``executable``, its client.

    Args:
        folder: An existing folder, for the client and the socket.
    """

    def __init__(self, folder):
        address = str(folder / 'socket')
        # The server ends when this pipe is closed, so also if this process is killed.
        self._server = subprocess.Popen(
            [sys.executable, '-m', __name__, address],
            cwd=ROOT,
            env=os.environ | {'OMP_NUM_THREADS': '1'},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        # Libraries print while they are imported.
        assert b'ready\n' in iter(self._server.stdout.readline, b'')
        self.executable = folder / 'python'
        self.executable.write_text(CLIENT.format(python=sys.executable, address=address))
        self.executable.chmod(0o755)

    def close(self):
        self._server.communicate()


def serve(address):
    """Fork for each run; return its command line in the process that is to do it."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.freeze()  # so that a collection in a fork does not copy the pages of the libraries
    print('ready', flush=True)
    while True:
        readable, _, _ = select.select([server, sys.stdin], [], [])
        if sys.stdin in readable:
            sys.exit()
        client, _ = server.accept()
        if os.fork() == 0:
            server.close()
            return attend(client)
        client.close()


def attend(client):
    """Receive a run and fork once more; the first process waits and reports, the second runs."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, streams, _, _ = socket.recv_fds(client, 8, 3)
    length = int.from_bytes(length, 'big')
    arguments, folder, environment = json.loads(client.recv(length, socket.MSG_WAITALL))
    process = os.fork()
    if process:
        client.sendall(f'{process}\n'.encode())
        # A client that is killed takes its run with it.
        while not (ended := os.waitpid(process, os.WNOHANG))[0]:
            if select.select([client], [], [], 0.02)[0]:
                os.kill(process, signal.SIGKILL)
                ended = os.waitpid(process, 0)
                break
        status = os.waitstatus_to_exitcode(ended[1])
        try:
            client.sendall(f'{status}\n'.encode())
        finally:
            os._exit(0)
    client.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    return arguments


def run(arguments):
    """Do what the interpreter would do with its command line, and end the process.

    Without its last act: to take all the libraries apart takes two seconds.
    """
    status = 0
    try:
        execute(arguments)
    except SystemExit as ending:
        status = ending.code or 0
        if not isinstance(status, int):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def execute(arguments):
    import numpy as np
    import torch

    # As a new process does. A fork would repeat the numbers of the one before it.
    random.seed()
    np.random.seed()
    torch.seed()
    path = [entry for entry in os.environ.get('PYTHONPATH', '').split(os.pathsep) if entry]
    sys.path[:0] = [entry for entry in path if entry not in sys.path]
    while arguments[0] == '-u':
        arguments = arguments[1:]
    if arguments[0] in ('-m', '-c'):
        option, program, *sys.argv[1:] = arguments
        sys.path.insert(0, os.getcwd())
        if option == '-m':
            sys.argv[0] = program
            runpy.run_module(program, run_name='__main__', alter_sys=True)
        else:
            sys.argv[0] = '-c'
            exec(compile(program, '<string>', 'exec'), {'__name__': '__main__'})
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
        runpy.run_path(arguments[0], run_name='__main__')


if __name__ == '__main__':
    exec(LIBRARIES)
    run(serve(sys.argv[1]))
