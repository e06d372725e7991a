"""Data sets of clients from a user's table.

::

    settings    source, columns and split          roles     columns that a model reads
    readers     one file -> raw columns            sources   all of data.source -> one checked Table
    columns     raw cells -> texts, labels         partition rows -> clients (flwr-datasets' partitioners)
    holdout     a client's rows -> train ... test  clients   all of it: make_clients -> FederatedData
    summary     tables of the clients' data        images    cells and folders -> images
    demo        the corpus of the package          instructions  cells -> prompts, answers, conversations
"""

from trifed.data.clients import (
    ClientData,
    Examples,
    FederatedData,
    content_hash,
    make_client,
    make_clients,
    rows_hash,
    text_examples,
)
from trifed.data.demo import demo_corpus_path
from trifed.data.images import IMAGES, as_png, open_image
from trifed.data.instructions import LANGUAGE, QUESTIONS
from trifed.data.partition import assign_clients
from trifed.data.roles import TEXT, TEXTS, Role, Roles
from trifed.data.settings import ClientSettings, DataSettings
from trifed.data.sources import Table, read_table, read_test
from trifed.data.summary import SplitRow, render_split, render_split_text, split_table, split_to_json

__all__ = [
    "IMAGES",
    "LANGUAGE",
    "QUESTIONS",
    "TEXT",
    "TEXTS",
    "ClientData",
    "ClientSettings",
    "DataSettings",
    "Examples",
    "FederatedData",
    "Role",
    "Roles",
    "SplitRow",
    "Table",
    "as_png",
    "assign_clients",
    "content_hash",
    "demo_corpus_path",
    "make_client",
    "make_clients",
    "open_image",
    "read_table",
    "read_test",
    "render_split",
    "render_split_text",
    "rows_hash",
    "split_table",
    "split_to_json",
    "text_examples",
]
