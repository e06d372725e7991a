"""Federated fine-tuning of foundation models when the wire is thin and the sites differ.

from trifed import make_config, run
result = run(make_config({"data": {"source": "tickets.csv"}, "model": {"name": "demo"}}))
result.accuracy, result.client("client-00").predict(["where is my parcel?"])
"""

from trifed.adapters import TriLoraConfig, export_plain_lora
from trifed.config import RunConfig, make_config
from trifed.errors import TrifedError
from trifed.federation.exports import load_client
from trifed.run import RunResult, load_result, resume, run
from trifed.version import __version__

__all__ = [
    "RunConfig",
    "RunResult",
    "TriLoraConfig",
    "TrifedError",
    "__version__",
    "export_plain_lora",
    "load_client",
    "load_result",
    "make_config",
    "resume",
    "run",
]
