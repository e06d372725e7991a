"""The settings that say which table to read and how to cut it into clients.

They are the `[data]` and `[data.clients]` parts of a run configuration. A value that cannot be used is
refused here, when the configuration is read; what only the table itself can tell is checked by the readers.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Split = Literal["iid", "dirichlet", "pathological", "column", "sizes", "files"]


class ClientSettings(BaseModel):
    """How the rows of one table are dealt out to clients.

    `count` holds for "iid", "dirichlet" and "pathological"; the other splits bring their own number of
    clients.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    split: Split = Field("dirichlet", description="how rows are dealt out")
    count: int = Field(default=10, ge=1, description="how many clients")
    alpha: float = Field(default=0.5, gt=0, allow_inf_nan=False, description="dirichlet; small is unlike")
    labels_per_client: int = Field(default=2, ge=1, description="pathological")
    column: str | None = Field(None, description="column; each of its values is a client")
    sizes: list[float] | None = Field(None, description="sizes; relative, one a client")
    min_examples: int = Field(default=10, ge=0, description="fewer are refused, or left without data")
    max_examples: int | None = Field(default=None, ge=1, description="more are drawn from at random")

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
    """Which table to read, which of its columns mean what, and how each client's rows are split.

    `source` is a CSV, JSON-lines or Parquet file, a folder of them, a folder written by
    `datasets.save_to_disk`, a list of files, or else the name of a data set on the hub. `hub_split` also
    picks the split of a saved `DatasetDict`. `test` is a separate test set for the whole federation, with
    the same columns; of a hub name or a saved `DatasetDict` it reads the split "test".

    `max_examples` draws rows of the whole table before it is split. `drop_duplicates` removes rows whose text
    (and second text) occurred before, and rows of the global test set that occur in the table.
    `allow_empty_clients` keeps clients with fewer than `clients.min_examples` rows, without data.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str | list[str] = Field(description="file, files, folder or hub name")
    hub_split: str = Field("train", description="split of a hub name or saved data set")
    hub_subset: str | None = Field(None, description="configuration of a hub name")
    text: str = Field("text", description="column of the text, or of an image's caption")
    text_pair: str | None = Field(None, description="column of a second text")
    image: str = Field("image", description="column of the image, embedded or as a path")
    prompt: str | None = Field(None, description="causal-lm: column of the prompt or instruction")
    input: str | None = Field(None, description="causal-lm: column of what a prompt is about; cells may be empty")
    answer: str | None = Field(None, description="causal-lm: column of the answer, which is learned")
    messages: str | None = Field(
        None, description="causal-lm: column of conversations, instead of prompt and answer"
    )
    label: str = Field(
        "label", description="column of the label, text or whole number; '' is none, as in causal-lm"
    )
    labels: list[str] | None = Field(
        None, description="all labels in their order; needed where no one sees every client's data"
    )
    test: str | None = Field(None, description="a separate test set for everybody")
    valid_fraction: float = Field(default=0.15, ge=0, lt=1, description="of each client's examples")
    test_fraction: float = Field(default=0.25, ge=0, lt=1, description="of each client's examples")
    max_examples: int | None = Field(default=None, ge=1, description="of the whole table, drawn at random")
    drop_duplicates: bool = Field(True, description="exact ones; also test rows that are in the table")
    skip_broken: bool = Field(False, description="leave out rows whose image cannot be read, and count them")
    allow_single_class: bool = Field(False, description="clients with one label train all the same")
    allow_empty_clients: bool = Field(False, description="clients below min_examples stay, without data")
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
