"""Settings of the data: the table, its columns, and its split into clients.

They are the tables `[data]` and `[data.clients]` of a run's configuration. Values are checked here when the
configuration is read; the readers check what depends on the table.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from trifed.common.strict_settings import StrictSettings, refuse
from trifed.data.in_memory import as_file, names_files
from trifed.data.sites import visible_sites

Split = Literal["iid", "dirichlet", "pathological", "column", "sizes", "files"]
Holdout = Literal["stratified", "random", "last"]


class ClientSettings(StrictSettings):
    """Settings of the split of a table's rows into clients."""

    split: Split = Field(
        "dirichlet",
        description="Rule that assigns rows to clients: evenly at random (iid), with unequal label shares "
        "(dirichlet), with few labels each (pathological), by a column, by given sizes, or by file.",
    )
    count: int = Field(default=10, ge=1, description="Number of clients for iid, dirichlet and pathological.")
    alpha: float = Field(
        default=0.5,
        gt=0,
        allow_inf_nan=False,
        description="For dirichlet: concentration of the label shares. The smaller, the more the clients differ.",
    )
    labels_per_client: int = Field(
        default=2, ge=1, description="For pathological: number of labels of each client."
    )
    column: str | None = Field(None, description="For column: the column whose values name the clients.")
    sizes: list[float] | None = Field(
        None, description="For sizes: relative sizes, one for each client, such as [3, 2, 1]."
    )
    min_examples: int = Field(
        default=10,
        ge=0,
        description="Fewest examples of a client. A client with fewer is an error, unless "
        "data.allow_empty_clients is set.",
    )
    max_examples: int | None = Field(
        default=None,
        ge=1,
        description="Most examples of a client; of more, a random part is used. Unset: no limit.",
    )

    @model_validator(mode="after")
    def _split_fits(self) -> Self:
        by_column, by_size = self.split == "column", self.split == "sizes"
        sizes = self.sizes or []
        bad = [size for size in sizes if not 0 < size < float("inf")]
        refuse(
            (
                by_column and not self.column,
                'split = "column" needs the name of a column; set column = "..." to the one that names the client',
            ),
            (
                not by_column and self.column is not None,
                f'column = "{self.column}" is used only by split = "column", but split is "{self.split}"; '
                'set split = "column" or leave column out',
            ),
            (
                not by_size and self.sizes is not None,
                f'sizes is used only by split = "sizes", but split is "{self.split}"; '
                'set split = "sizes" or leave sizes out',
            ),
            (
                by_size and not sizes,
                'split = "sizes" needs sizes, one relative size a client, for example sizes = [3, 2, 1]',
            ),
            (bad, f"sizes must all be finite and above 0, got {bad}"),
            (
                by_size and "count" in self.model_fields_set and self.count != len(sizes),
                f"count = {self.count}, but sizes names {len(sizes)} clients; leave count out or make them equal",
            ),
            (
                self.max_examples is not None and self.max_examples < self.min_examples,
                f"max_examples = {self.max_examples} is below min_examples = {self.min_examples}; "
                "raise the first or lower the second",
            ),
        )
        return self


class DataSettings(StrictSettings):
    """The table, its columns, and the split of each client's rows.

    `source` may also be a folder written by `datasets.save_to_disk`; `hub_split` then selects the split of a saved
    `DatasetDict`. `test` has the same columns as `source`; from a hub name or a saved `DatasetDict`, its split
    "test" is read. In Python both may be tables in memory: see `data.in_memory`.
    """

    source: str | list[str] = Field(
        description="The table: a file (CSV, TSV, JSON Lines, Parquet, Excel), several files, a folder, or the "
        "name of a data set on the hub."
    )
    separator: str | None = Field(
        None,
        description="Separator of the cells of CSV files. Unset: comma, semicolon, tab or bar, whichever "
        "splits the header into the named columns.",
    )
    encoding: str | None = Field(
        None, description="Encoding of CSV and JSON files, such as cp1252. Unset: UTF-8, or UTF-16 with its mark."
    )
    sheet: str | None = Field(None, description="Sheet of Excel files. Unset: the first one.")
    hub_split: str = Field("train", description="Split of a data set from the hub or of a saved one.")
    hub_subset: str | None = Field(None, description="Configuration of a data set from the hub.")
    text: str = Field("text", description="Column of the text, of an image's caption, or of a sentence's words.")
    text_pair: str | None = Field(None, description="Column of a second text.")
    image: str = Field("image", description="Column of the image, embedded or as a path.")
    prompt: str | None = Field(None, description="For language models: column of the prompt or instruction.")
    input: str | None = Field(
        None, description="For language models: column of the material that a prompt is about. Cells may be empty."
    )
    answer: str | None = Field(
        None, description="For language models: column of the answer, which the model learns."
    )
    messages: str | None = Field(
        None, description="For causal-lm: column of conversations, instead of prompt and answer."
    )
    label: str = Field(
        "label",
        description="Column of the label, a text or a whole number, or of the tags of a sentence's words. Tasks "
        "without labels set ''.",
    )
    label_separator: str | None = Field(
        None,
        min_length=1,
        description="For multi-label-classification: separator of the labels in a text, such as ';'. Unset: the "
        "column holds lists.",
    )
    labels: list[str] | None = Field(
        None, description="All labels in order. Needed if nobody can read the data of all clients."
    )
    test: str | None = Field(None, description="A separate test set, on which all clients are also evaluated.")
    valid_fraction: float = Field(
        default=0.15, ge=0, lt=1, description="Share of each client's examples that is held out for validation."
    )
    test_fraction: float = Field(
        default=0.25, ge=0, lt=1, description="Share of each client's examples that is held out for testing."
    )
    holdout: Holdout = Field(
        "stratified",
        description="Rule that holds examples out for validation and testing: the same shares of every label "
        "(stratified), at random, or the last rows of each client (last), such as the newest ones.",
    )
    max_examples: int | None = Field(
        default=None,
        ge=1,
        description="Number of rows that are drawn at random from the whole table. Unset: all rows.",
    )
    drop_duplicates: bool = Field(
        True,
        description="Leave out exact duplicates within a client (or within a table that does not name clients), "
        "and rows of the test set that occur in the table.",
    )
    skip_broken: bool = Field(
        False,
        description="Leave out rows whose image cannot be read, and report their number. If off: an error.",
    )
    allow_single_class: bool = Field(False, description="Let clients train that have examples of one label only.")
    allow_empty_clients: bool = Field(
        False, description="Keep clients with fewer than min_examples examples, without data."
    )
    clients: ClientSettings = ClientSettings()

    @field_validator("source", "test", mode="before")
    @classmethod
    def _tables_are_written_to_files(cls, source: Any) -> Any:
        return source if source is None or names_files(source) else as_file(source)

    @model_validator(mode="before")
    @classmethod
    def _visible_sites_are_clients(cls, values: Any) -> Any:
        """Let each file or subfolder of `source` be a client if the settings name no split."""
        if not isinstance(values, dict) or not isinstance(values.get("source"), str | list):
            return values
        clients = values.get("clients") or {}
        if not isinstance(clients, dict) or set(clients) - {"min_examples", "max_examples"}:
            return values
        try:
            sites = visible_sites(values["source"])
        except (OSError, TypeError, ValueError):  # the reader names what is wrong with it
            return values
        return {**values, "clients": {**clients, "split": "files"}} if sites else values

    @field_validator("separator")
    @classmethod
    def _separator_is_one_sign(cls, separator: str | None) -> str | None:
        named = {"\\t": "\t", "tab": "\t"}.get(separator or "", separator)
        refuse(
            (
                named is not None and (len(named) != 1 or named in '"\r\n'),
                f'separator: got {separator!r}, expected one sign, such as ";", or "tab"',
            )
        )
        return named

    @field_validator("encoding")
    @classmethod
    def _encoding_is_known(cls, encoding: str | None) -> str | None:
        try:
            text = encoding is None or bool("a".encode(encoding))
        except LookupError:  # unknown, or no encoding of texts
            text = False
        refuse(
            (not text, f"encoding: got {encoding!r}, expected a text encoding that Python knows, such as cp1252")
        )
        return encoding

    @field_validator("source")
    @classmethod
    def _source_is_named(cls, source: str | list[str]) -> str | list[str]:
        names = [source] if isinstance(source, str) else source
        refuse(
            (not names, "source is an empty list; name at least one file"),
            (
                any(not name.strip() for name in names),
                "source holds an empty name; give a file, a folder or a hub name",
            ),
        )
        return source

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        named: dict[str, str] = {}
        settings = ["prompt", "input", "answer", "messages", "text_pair", "label"]
        if self.answer is None and self.messages is None:
            settings.insert(0, "text")
        for setting in settings:
            column = getattr(self, setting)
            if column is None or (not column and setting == "label"):
                continue
            refuse(
                (not column, f"{setting} is an empty column name; name a column of the table"),
                (
                    column in named,
                    f'{setting} and {named.get(column)} both name the column "{column}"; they must be different '
                    "columns",
                ),
            )
            named[column] = setting
        return self

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        there, missing = ("prompt", "answer") if self.answer is None else ("answer", "prompt")
        held_out = self.valid_fraction + self.test_fraction
        refuse(
            (
                (self.prompt is None) != (self.answer is None),
                f"{there} names a column and {missing} none; name both, or neither",
            ),
            (
                self.input is not None and self.prompt is None,
                "input names a column, and prompt and answer name none; name them too",
            ),
            (
                self.messages is not None and self.prompt is not None,
                "messages and prompt both name a column; name one of them",
            ),
            (
                held_out >= 1,
                f"valid_fraction = {self.valid_fraction} and test_fraction = {self.test_fraction} add up to "
                f"{held_out:g} and leave nothing to train on; make their sum smaller than 1",
            ),
        )
        return self
