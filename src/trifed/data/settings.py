"""Settings of the data: the table, its columns, and its split into clients.

They are the tables `[data]` and `[data.clients]` of a run's configuration. Values are checked here when the
configuration is read; the readers check what depends on the table.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Split = Literal["iid", "dirichlet", "pathological", "column", "sizes", "files"]


class ClientSettings(BaseModel):
    """How the rows of a table are split into clients."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    split: Split = Field(
        "dirichlet",
        description="How rows are assigned to clients: evenly at random (iid), with unequal label shares "
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
    def _split_has_what_it_needs(self) -> Self:
        if self.split == "column" and not self.column:
            raise ValueError(
                'split = "column" needs the name of a column; set column = "..." to the one that names the client'
            )
        if self.split != "column" and self.column is not None:
            raise ValueError(
                f'column = "{self.column}" is used only by split = "column", but split is "{self.split}"; '
                'set split = "column" or leave column out'
            )
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.split != "sizes":
            if self.sizes is not None:
                raise ValueError(
                    f'sizes is used only by split = "sizes", but split is "{self.split}"; '
                    'set split = "sizes" or leave sizes out'
                )
            return self
        if not self.sizes:
            raise ValueError(
                'split = "sizes" needs sizes, one relative size a client, for example sizes = [3, 2, 1]'
            )
        bad = [size for size in self.sizes if not 0 < size < float("inf")]
        if bad:
            raise ValueError(f"sizes must all be finite and above 0, got {bad}")
        if "count" in self.model_fields_set and self.count != len(self.sizes):
            raise ValueError(
                f"count = {self.count}, but sizes names {len(self.sizes)} clients; leave count out or make "
                "them equal"
            )
        return self

    @model_validator(mode="after")
    def _bounds_fit(self) -> Self:
        if self.max_examples is not None and self.max_examples < self.min_examples:
            raise ValueError(
                f"max_examples = {self.max_examples} is below min_examples = {self.min_examples}; "
                "raise the first or lower the second"
            )
        return self


class DataSettings(BaseModel):
    """The table, its columns, and the split of each client's rows.

    `source` may also be a folder written by `datasets.save_to_disk`; `hub_split` then selects the split of a saved
    `DatasetDict`. `test` has the same columns as `source`; from a hub name or a saved `DatasetDict`, its split
    "test" is read.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str | list[str] = Field(
        description="The table: a file (CSV, JSON Lines, Parquet), several files, a folder, or the name of a "
        "data set on the hub."
    )
    hub_split: str = Field("train", description="Split of a data set from the hub or of a saved one.")
    hub_subset: str | None = Field(None, description="Configuration of a data set from the hub.")
    text: str = Field("text", description="Column of the text, or of an image's caption.")
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
        "label", description="Column of the label, a text or a whole number. Tasks without labels set ''."
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
    max_examples: int | None = Field(
        default=None,
        ge=1,
        description="Number of rows that are drawn at random from the whole table. Unset: all rows.",
    )
    drop_duplicates: bool = Field(
        True, description="Leave out exact duplicates, and rows of the test set that occur in the table."
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

    @field_validator("source")
    @classmethod
    def _source_is_named(cls, source: str | list[str]) -> str | list[str]:
        names = [source] if isinstance(source, str) else source
        if not names:
            raise ValueError("source is an empty list; name at least one file")
        if any(not name.strip() for name in names):
            raise ValueError("source holds an empty name; give a file, a folder or a hub name")
        return source

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        named: dict[str, str] = {}
        settings = ["prompt", "input", "answer", "messages", "text_pair", "label"]
        if self.answer is None and self.messages is None:
            settings.insert(0, "text")
        for setting, column in ((setting, getattr(self, setting)) for setting in settings):
            if column is None or (not column and setting == "label"):
                continue
            if not column:
                raise ValueError(f"{setting} is an empty column name; name a column of the table")
            if column in named:
                raise ValueError(
                    f'{setting} and {named[column]} both name the column "{column}"; they must be '
                    "different columns"
                )
            named[column] = setting
        return self

    @model_validator(mode="after")
    def _prompts_have_answers(self) -> Self:
        if (self.prompt is None) != (self.answer is None):
            there, missing = ("prompt", "answer") if self.answer is None else ("answer", "prompt")
            raise ValueError(f"{there} names a column and {missing} none; name both, or neither")
        if self.input is not None and self.prompt is None:
            raise ValueError("input names a column, and prompt and answer name none; name them too")
        if self.messages is not None and self.prompt is not None:
            raise ValueError("messages and prompt both name a column; name one of them")
        return self

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> Self:
        held_out = self.valid_fraction + self.test_fraction
        if held_out >= 1:
            raise ValueError(
                f"valid_fraction = {self.valid_fraction} and test_fraction = {self.test_fraction} add up to "
                f"{held_out:g} and leave nothing to train on; make their sum smaller than 1"
            )
        return self
