"""A model folder on its way to the Hugging Face Hub: what goes, and its going."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils._validators import validate_repo_id

from nullspace_unlearn.clip.folder import model_files, read_folder
from nullspace_unlearn.clip.source import CARD_NAME, one_line
from nullspace_unlearn.files import read_text


@dataclass(frozen=True)
class Going:
    """What would be uploaded.

    Attributes:
        folder: From where.
        repository: To where, "org/name".
        files: Paths in the folder and their bytes.
        card: The text of README.md.
    """

    folder: Path
    repository: str
    files: tuple[tuple[str, int], ...]
    card: str


def what_goes(folder: Path, repository: str) -> Going:
    """Look at what an upload would do; nothing is sent.

    Args:
        folder: A model folder.
        repository: "org/name" on the hub.

    Raises:
        ValueError: If the folder holds no model, no card or a link, or the repository's name cannot
            be one.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ValueError(f"{repository!r} is no repository: {one_line(error)}") from None
    if repository.count("/") != 1:
        raise ValueError(f"{repository!r} is no repository; it takes ORG/NAME")
    read_folder(folder)
    files = sorted(model_files(folder))
    if links := [file.name for file in files if file.is_symlink()]:
        raise ValueError(f"{str(folder)!r} holds a link, {links[0]!r}, which is not uploaded")
    if not (folder / CARD_NAME).is_file():
        raise ValueError(f"{str(folder)!r} holds no {CARD_NAME}, and a model goes with its card")
    sizes = tuple((file.relative_to(folder).as_posix(), file.stat().st_size) for file in files)
    return Going(folder, repository, sizes, read_text(folder / CARD_NAME))


def upload(going: Going, private: bool = False) -> str:
    """Upload a folder, with the login that the hub's own commands keep.

    Args:
        going: From `what_goes`.
        private: Whether a repository that is made is private.

    Returns:
        The address of the repository.

    Raises:
        RuntimeError: If nobody is logged in, or the hub refuses.
    """
    api = HfApi()
    try:
        address = api.create_repo(going.repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=going.repository,
            folder_path=going.folder,
            allow_patterns=[name for name, _ in going.files],
            commit_message="A model that was made to forget, by nullspace-unlearn",
        )
    except LocalTokenNotFoundError:
        raise RuntimeError("nobody is logged in to the hub: hf auth login") from None
    except Exception as error:
        raise RuntimeError(f"cannot upload to {going.repository}: {one_line(error)}") from None
    return str(address)
