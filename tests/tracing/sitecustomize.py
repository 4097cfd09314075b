"""Record which modules of the package a stage runs functions of: a line [code hash, module] each in $TRACES/<pid>.

Python imports this at start-up if the folder is on PYTHONPATH; tests/test_whole_run.py puts it there.
"""

import json
import os
import sys
import threading

if "TRACES" in os.environ and "--code" in sys.orig_argv:
    CODE = sys.orig_argv[sys.orig_argv.index("--code") + 1]
    seen = set()

    def trace(frame, event, argument):
        code = frame.f_code
        if code in seen:
            return
        seen.add(code)
        # The bodies of modules and classes, and what writes the methods of dataclasses, run with every import.
        if code.co_name in ("<module>", "__create_fn__") or "__qualname__" in code.co_names:
            return
        spec, name = frame.f_globals.get("__spec__"), frame.f_globals.get("__name__", "")
        name = spec.name if name == "__main__" and spec else name
        if name.startswith("lowrank_speech.") and name not in seen:
            seen.add(name)
            with open(os.path.join(os.environ["TRACES"], str(os.getpid())), "a", encoding="utf-8") as file:
                file.write(json.dumps([CODE, name]) + "\n")

    threading.settrace(trace)
    sys.settrace(trace)
