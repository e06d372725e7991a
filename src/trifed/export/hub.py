"""Upload an exported folder to a model hub."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from httpx import HTTPError

from trifed.common.errors import RunError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
"""OWNER/NAME, as hubs write the name of a repository."""


def check_repository(repository: str) -> None:
    """Check, before anything is exported, that an upload can be tried.

    Raises:
        RunError: The name is not OWNER/NAME, or no token of the hub is known here.
    """
    from huggingface_hub import get_token

    if not NAME.fullmatch(repository):
        raise RunError(f"--push-to-hub: got '{repository}', expected OWNER/NAME, such as my-team/tickets-berlin")
    if get_token() is None:
        raise RunError("--push-to-hub: the hub knows nobody here; log in with `hf auth login`, or set HF_TOKEN")


def push_to_hub(folder: str | Path, repository: str, private: bool = False) -> str:
    """Upload an exported folder, its model card included, and return the repository's address.

    The repository is made unless it exists. In an existing one the folder's files replace those of the same names.

    Args:
        folder: A folder that `export_client` or `export_clients` wrote.
        repository: OWNER/NAME at the hub of HF_ENDPOINT, huggingface.co by default.
        private: Make a private repository; an existing one that is public is refused.

    Raises:
        RunError: The name cannot be used, the folder names a base model that only this machine has, or the hub
            refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    path = Path(folder)
    check_repository(repository)
    refuse_local_base(path)
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="trifed")
    try:
        address = str(api.create_repo(repository, private=private or None, exist_ok=True))
        if private and not api.model_info(repository).private:
            raise RunError(f"{address}: it exists and is public; give another name, or leave out --private")
        api.upload_folder(folder_path=path, repo_id=repository, commit_message="Upload a model exported by trifed")
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        again = f"hf upload {repository} {path}{' --private' if private else ''}"
        raise RunError(f"{repository}: not uploaded ({reason}); the export is kept; again: {again}") from error
    return address


def refuse_local_base(folder: Path) -> None:
    """Check that no adapter in a folder names a base model by a path of this machine.

    Raises:
        RunError: One does.
    """
    for file in sorted(folder.rglob("adapter_config.json")):
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path") or ""
        if Path(base).is_absolute() or Path(base).exists():
            raise RunError(
                f"{file.parent}: its base model is the folder {base} of this machine; export it again with --base "
                f"and the base's hub name, or with --form merged, which needs no base"
            )
