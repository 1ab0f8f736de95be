"""Tasks for the workers of tests. It imports little, since every worker imports it."""

import os
import signal
import time


def obey(task: list) -> object:
    kind, value = task
    match kind:
        case "double":
            return 2 * value
        case "pid":
            return os.getpid()
        case "sleep":
            time.sleep(value)
        case "spin":
            while True:
                pass
        case "ignore signals":
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
                signal.signal(number, signal.SIG_IGN)
            while True:
                pass
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            raise SystemExit(0)
        case "raise":
            raise ValueError(value)
        case "eat memory":
            return len(bytearray(value))
        case "not json":
            return object()
        case "print":
            print('{"result": "forged"}', flush=True)
            return value
        case "recurse":
            return obey(task)
    return None
