"""Data sets of clients from a user's table.

::

    settings    source, columns and split          roles         columns that a model reads
    readers     one file -> raw columns            sources       all of data.source -> one checked Table
    columns     raw cells -> texts, labels         images        cells and folders -> images
    conll       files of words and tags            tags          lists of words, and a tag for each
    targets     labels that are no classes         excel         sheets of Excel files
    partition   rows -> clients, train ... test    partitioners  random splits (flwr-datasets)
    clients     all of it: make_clients -> FederatedData
    summary     tables of the clients' data        hashes        what identifies the data
"""

from trifed.data.clients import (
    ClientData,
    Examples,
    FederatedData,
    make_client,
    make_clients,
    text_examples,
)
from trifed.data.hashes import content_hash, rows_hash
from trifed.data.images import as_png, open_image, open_rgb
from trifed.data.partition import assign_clients
from trifed.data.roles import IMAGES, LABEL_LIST, LANGUAGE, NUMBER, QUESTIONS, TAGGED, TEXT, TEXTS, Role, Roles
from trifed.data.settings import ClientSettings, DataSettings
from trifed.data.sources import Table, demo_corpus_path, read_table, read_test
from trifed.data.summary import SplitRow, render_split, render_split_text, split_table, split_to_json

__all__ = [
    "IMAGES",
    "LABEL_LIST",
    "LANGUAGE",
    "NUMBER",
    "QUESTIONS",
    "TAGGED",
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
    "open_rgb",
    "read_table",
    "read_test",
    "render_split",
    "render_split_text",
    "rows_hash",
    "split_table",
    "split_to_json",
    "text_examples",
]
