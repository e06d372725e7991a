"""An interpreter that cannot import trifed, for what has to work without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

FORKS = """
import sys
sys.modules["trifed"] = None  # importing it would fail
import gc, json, os, traceback
gc.disable()
import numpy, torch, PIL.Image
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, BertModel
torch.set_num_threads(1)
gc.freeze(), gc.enable()
for line in sys.stdin:
    asked = json.loads(line)
    if (child := os.fork()) == 0:
        try:
            for number, name in ((1, "out.txt"), (2, "errors.txt")):
                with open(os.path.join(asked["results"], name), "w") as file:
                    os.dup2(file.fileno(), number)
            os.chdir(asked["folder"])
            sys.argv[1:] = asked["words"]
            exec(compile(asked["code"], "plain", "exec"), {"__name__": "__main__"})
            code = 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="session")
def plain_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """`plain_python(code, folder, "an argument")`: its output in an interpreter that cannot import trifed.

    Every call has a process of its own, forked from one that has imported torch, transformers and PEFT.
    """
    results = tmp_path_factory.mktemp("plain")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", FORKS], env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:

        def call(code: str, folder: Path, *words: str) -> str:
            asked = {"code": code, "folder": str(folder), "words": words, "results": str(results)}
            print(json.dumps(asked), file=process.stdin, flush=True)
            assert process.stdout is not None and process.stdout.readline() == "0\n", (
                results / "errors.txt"
            ).read_text()
            return (results / "out.txt").read_text().strip()

        yield call
        assert process.stdin is not None
        process.stdin.close()
